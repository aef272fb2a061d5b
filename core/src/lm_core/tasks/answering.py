"""Evaluation by generation: a model answers the questions of a data set, and answers are scored.

Answers are appended line by line, so that an evaluation that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.checkpoint import io
from lm_core.errors import DataError, GenerationError
from lm_core.metrics.means import Means
from lm_core.tasks.journal import Journal, Task, answers
from lm_core.tasks.journal import Records as Lines

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.data.records import Records
    from lm_core.generation.config import GenerationConfig
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.pipeline import TextGenerationPipeline
    from lm_core.tokenizer.base import Tokenizer

PREDICTIONS = "predictions.jsonl"
_FIELDS = ("prediction",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked, by the number of the record, and how an answer is scored."""

    records: Records
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    """Ids, without padding."""
    shown: Sequence[Mapping[str, Any]]
    """What stands beside the answer in its line; with the prompts it is what answers belong to."""
    names: Sequence[str]
    """Of the scores."""
    score: Callable[[int, str], Mapping[str, float]]
    """Of the answer to the question of a number."""
    new_tokens: int
    """The longest answer, where neither the run nor the model says how long one may be."""
    shorten: str
    """What to do about prompts that are too long, for a message."""


def evaluate(run: RunConfig, model: Network, questions: Questions) -> dict[str, float]:
    """The mean scores of the answers; those that are missing below `output_dir` are generated.

    Raises:
        ConfigError: the answers that are there are those of another run.
        GenerationError: a prompt leaves no room for an answer.
    """
    generator, settings = _generator(run, model, questions)
    tasks = _tasks(questions.prompts)
    _check_prompts(tasks, settings, model, questions)
    journal = Journal(
        Path(run.output_dir) / PREDICTIONS, _FIELDS, _facts(run, model, settings, questions)
    )
    scores, there = Means(questions.names), journal.read()
    done = set(_of_first(model.context, _numbers(there, len(tasks), journal.path)))
    _add(scores, questions, there)
    todo = [task for task in tasks if task.key not in done]
    if todo:
        journal.write(
            _written(generator, todo, questions, run.seed),
            rank=model.context.rank, unit="answer", done=len(done), total=len(tasks),
            note=lambda batch: _add(scores, questions, batch),
        )  # fmt: skip
    return _shared(model.context, scores.result())


def _generator(
    run: RunConfig, model: Network, questions: Questions
) -> tuple[TextGenerationPipeline, GenerationConfig]:
    """What answers, and its settings: the model's; the questions' length where that has none."""
    from lm_core.generation.config import GenerationConfig
    from lm_core.pipeline import TextGenerationPipeline

    config = model.config
    own = config.max_length or config.max_decode_length or config.max_new_tokens
    options: dict[str, Any] = {} if own else {"max_new_tokens": questions.new_tokens}
    generator = TextGenerationPipeline(
        model, questions.tokenizer, batch_size=run.runner_config.batch_size, **options
    )
    return generator, GenerationConfig.from_model(config, **options).completed(config)


def _tasks(prompts: Sequence[Sequence[int]]) -> list[Task]:
    """The prompts, by the number of the record."""
    copies: Counter[tuple[int, ...]] = Counter()
    found = []
    for number, ids in enumerate(prompts):
        found.append(Task(number, [*ids], copies[tuple(ids)]))
        copies[tuple(ids)] += 1
    return found


def _check_prompts(
    tasks: Sequence[Task], settings: GenerationConfig, model: Network, questions: Questions
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
            f"tokens of the longest prompt ({questions.records.locate(longest.key)}), which it "
            f"counts; raise it, or {questions.shorten}"
        )


def spelt(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """A text of people as the tokenizer spells it, so that its normalisation is no error."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _facts(
    run: RunConfig, model: Network, settings: GenerationConfig, questions: Questions
) -> dict[str, Any]:
    """What answers and scores follow from."""
    pairs = zip(questions.prompts, questions.shown, strict=True)
    data = json.dumps([[[*ids], {**shown}] for ids, shown in pairs])
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
    bits = np.array([*result.values()]).view(np.uint16)
    values = np.array(_of_first(context, bits.tolist()), np.uint16).view(np.float64)
    return dict(zip(result, values.tolist(), strict=True))


def _numbers(there: Lines, rows: int, path: Path) -> list[int]:
    given = [line.get("number") for line in there]
    found = [number for number in given if isinstance(number, int) and 0 <= number < rows]
    if len(found) < len(given):
        raise DataError(
            f"{path}: has lines without the number of a row; must hold what was written there; "
            f"delete it to begin again"
        )
    return found


def _written(
    generator: TextGenerationPipeline, todo: Sequence[Task], questions: Questions, seed: int
) -> Iterator[Lines]:
    """Lines of the answers, a batch at a time."""
    for batch in answers(generator, todo, generator.batch_size, seed):
        yield [
            {
                "number": task.key,
                **questions.shown[task.key],
                "prediction": generator.decode(row[len(task.ids) :]),
            }
            for task, row in batch
        ]


def _add(scores: Means, questions: Questions, lines: Lines) -> str:
    """Adds the answers of some lines; the scores so far."""
    for line in lines:
        scores.update(line["number"], questions.score(line["number"], line["prediction"]))
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.result().items())
