"""Evaluation by generation: a model answers the questions of a data set, and ADGENMetric compares.

Answers are appended line by line, so that an evaluation that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.checkpoint import io
from lm_core.data.adgen import AnswerRecords
from lm_core.data.answers import prompt_ids
from lm_core.errors import ConfigError, DataError, GenerationError
from lm_core.metrics.adgen import NAMES, AnswerScores
from lm_core.tasks.journal import Journal, Records, Task, answers

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.generation.config import GenerationConfig
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.pipeline import TextGenerationPipeline

PREDICTIONS = "predictions.jsonl"
FIELDS = ("content", "prediction", "reference")


def check(run: RunConfig) -> None:
    """Raises ConfigError if the run's evaluation data are no questions with answers."""
    kind = run.eval_dataset.data_loader.type
    if kind != "ADGenDataLoader":
        raise ConfigError(
            f"metric.type: ADGENMetric compares texts, and eval_dataset.data_loader.type is "
            f"{kind}; must be ADGenDataLoader; change it, or set metric.type: PerplexityMetric"
        )


def evaluate(run: RunConfig, model: Network, records: AnswerRecords) -> dict[str, float]:
    """The mean scores of the answers; those that are missing below `output_dir` are generated.

    Raises:
        ConfigError: the answers that are there are those of another run.
        GenerationError: a prompt leaves no room for an answer.
    """
    generator, settings = _generator(run, model, records)
    tasks = _tasks(records)
    _check_prompts(tasks, settings, model, records)
    references = _references(records)
    journal = Journal(
        Path(run.output_dir) / PREDICTIONS, FIELDS, _facts(run, model, settings, tasks, references)
    )
    scores, there = AnswerScores(), journal.read()
    done = set(_of_first(model.context, _numbers(there, len(tasks), journal.path)))
    for record in there:
        scores.update(record["number"], record["prediction"], record["reference"])
    todo = [task for task in tasks if task.key not in done]
    if todo:
        journal.write(
            _written(generator, todo, records, references, run.seed),
            rank=model.context.rank, unit="answer", done=len(done), total=len(tasks),
            note=lambda batch: _note(scores, batch),
        )  # fmt: skip
    return _shared(model.context, scores.result())


def _generator(
    run: RunConfig, model: Network, records: AnswerRecords
) -> tuple[TextGenerationPipeline, GenerationConfig]:
    """What answers, and its settings: the model's; the section's length where that has none."""
    from lm_core.generation.config import GenerationConfig
    from lm_core.pipeline import TextGenerationPipeline

    config = model.config
    own = config.max_length or config.max_decode_length or config.max_new_tokens
    options: dict[str, Any] = {} if own else {"max_new_tokens": records.lengths.target}
    generator = TextGenerationPipeline(
        model, records.tokenizer, batch_size=run.runner_config.batch_size, **options
    )
    return generator, GenerationConfig.from_model(config, **options).completed(config)


def _tasks(records: AnswerRecords) -> list[Task]:
    """The prompts of all rows, by the number of the row."""
    copies: Counter[tuple[int, ...]] = Counter()
    found = []
    for number in range(len(records)):
        pair = records.pairs[number]
        ids = prompt_ids(records.tokenizer, pair.content, records.lengths.source)
        found.append(Task(number, ids, copies[tuple(ids)]))
        copies[tuple(ids)] += 1
    return found


def _check_prompts(
    tasks: Sequence[Task], settings: GenerationConfig, model: Network, records: AnswerRecords
) -> None:
    """Finds prompts that cannot be answered before hours of generation, not after.

    Raises:
        GenerationError: one leaves no room for an answer, or has tokens that the model has not.
    """
    from lm_core.generation.prompts import read_prompts

    config = model.config
    read_prompts(
        [task.ids for task in tasks], None, vocab_size=config.vocab_size, bos=None, pad=None
    )
    most = min(settings.max_length or config.seq_length, config.seq_length)
    longest = max(tasks, key=lambda task: len(task.ids))
    if len(longest.ids) >= most:
        key = "max_length" if config.max_length else "max_decode_length"
        what = key if settings.max_length == most else "seq_length"
        raise GenerationError(
            f"model.model_config.{what}: is {most}; must be more than the {len(longest.ids)} "
            f"tokens of the longest prompt ({records.locate(longest.key)}), which it counts; "
            f"raise it, or lower eval_dataset.max_source_length"
        )


def _references(records: AnswerRecords) -> list[str]:
    """What people wrote, as the tokenizer spells it, so that its normalisation is no error."""
    encode, decode = records.tokenizer.encode, records.tokenizer.decode
    pairs = records.pairs[: len(records)]
    return [
        str(decode(encode(pair.answer, add_special_tokens=False), skip_special_tokens=True))
        for pair in pairs
    ]


def _facts(
    run: RunConfig,
    model: Network,
    settings: GenerationConfig,
    tasks: Sequence[Task],
    references: Sequence[str],
) -> dict[str, Any]:
    """What answers and scores follow from."""
    data = json.dumps([[task.ids, text] for task, text in zip(tasks, references, strict=True)])
    return {
        **dataclasses.asdict(settings),
        "data": hashlib.sha256(data.encode()).hexdigest(),
        "weights": _fingerprint(model),
        "seed": run.seed if settings.do_sample else None,
    }


def _fingerprint(model: Network) -> str:
    """A checksum of the weights, of rank 0's part of them: their place may hold others next time.

    Takes a second for each gigabyte.
    """
    total = hashlib.sha256()
    weights = io.Parameters(model.named_parameters())
    for name in sorted(weights.specs):
        total.update(f"{name}\n".encode())
        total.update(np.ascontiguousarray(weights.read(name)).reshape(-1).view(np.uint8).data)
    return bytes(_of_first(model.context, [*total.digest()])).hex()


def _of_first(context: ParallelContext, values: Sequence[int]) -> list[int]:
    """The whole numbers of rank 0, on all ranks: what lies on disks may not be there for all."""
    if context.world_size == 1:
        return [*values]
    from lm_core.parallel import collectives

    return collectives.shared(context, values)


def _shared(context: ParallelContext, result: dict[str, float]) -> dict[str, float]:
    """The scores of rank 0, which alone has all answers."""
    bits = np.array([result[name] for name in NAMES]).view(np.uint16)
    values = np.array(_of_first(context, bits.tolist()), np.uint16).view(np.float64)
    return dict(zip(NAMES, values.tolist(), strict=True))


def _numbers(there: Records, rows: int, path: Path) -> list[int]:
    given = [record.get("number") for record in there]
    found = [number for number in given if isinstance(number, int) and 0 <= number < rows]
    if len(found) < len(given):
        raise DataError(
            f"{path}: has lines without the number of a row; must hold what was written there; "
            f"delete it to begin again"
        )
    return found


def _written(
    generator: TextGenerationPipeline,
    todo: Sequence[Task],
    records: AnswerRecords,
    references: Sequence[str],
    seed: int,
) -> Iterator[Records]:
    """Records of the answers, a batch at a time."""
    for batch in answers(generator, todo, generator.batch_size, seed):
        yield [
            {
                "number": task.key,
                "content": records.pairs[task.key].content,
                "prediction": generator.decode(row[len(task.ids) :]),
                "reference": references[task.key],
            }
            for task, row in batch
        ]


def _note(scores: AnswerScores, batch: Records) -> str:
    """Adds a batch of answers; the scores so far."""
    for record in batch:
        scores.update(record["number"], record["prediction"], record["reference"])
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.result().items())
