"""`evaluate humaneval`: a model writes programs, a sandbox runs them, and pass@k counts.

Everything is resumed: a sample follows from (seed, problem, its number) alone, samples and results
are appended line by line, and what is there already is not done again.
"""

from __future__ import annotations

import hashlib
import json
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.config.flags import add_run_arguments, positive, resolve_run, world_size
from lm_core.data import jsonlines
from lm_core.data.humaneval import SAMPLE_FIELDS, Problem, cut, read_problems
from lm_core.errors import ConfigError, DataError, GenerationError, some
from lm_core.log import get_logger, progress
from lm_core.sandbox import runner
from lm_core.sandbox.jail import Limits
from lm_core.sandbox.judge import PASSED
from lm_core.tasks.journal import Journal, Task, answers

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.pipeline import TextGenerationPipeline
    from lm_core.spec import ModelSpec

SAMPLES = "samples.jsonl"
RESULTS = "_results.jsonl"
"""Added to the whole name of the samples' file, as the original program does."""
_FIRST_COLUMN = re.compile(r"\n\S")
_WALL = 3
"""Wall-clock seconds for each second of the processor: others use this machine, too."""
_EPILOG = """\
Programs of models are run in a sandbox without network, files, privileges and other processes, or
not at all. --samples_file scores samples that are there; a completion follows the prompt, repeats
it, or is a whole module with the function.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this form, beside those that every run has."""
    add_run_arguments(parser)
    add = parser.add_argument_group("HumanEval").add_argument
    add("--data_path", required=True, metavar="F", help="problems: HumanEval.jsonl.gz, or alike")
    add("--k", type=_numbers, default=(1,), metavar="K,K", help="for which k of pass@k (1)")
    add("--samples_file", metavar="F", help="score these samples; needs no model")
    add(
        "--num_samples",
        dest="samples",
        type=positive,
        default=1,
        metavar="N",
        help="programs for each problem (1)",
    )
    add(
        "--timeout",
        type=positive,
        default=3,
        metavar="S",
        help=f"seconds of the processor for a program (3); of the clock {_WALL} times as many",
    )
    add("--workers", type=positive, metavar="N", help="programs run at once (one per processor)")
    add = parser.add_argument_group("generation").add_argument
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="above 0: draw; without it the most likely token",
    )
    add(
        "--top_p",
        type=float,
        default=0.95,
        metavar="P",
        help="draw among tokens of this probability (0.95)",
    )
    add("--top_k", type=int, default=0, metavar="N", help="draw among so many tokens (0: all)")
    add("--max_new_tokens", type=positive, default=512, metavar="N", help="longest program (512)")
    add("--batch_size", dest="rows", type=positive, metavar="N", help="prompts computed at once")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the checkpoint's)")
    parser.epilog = f"{_EPILOG}\n{parser.epilog}"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} is no list of whole numbers above 0: 1,10") from None


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints `HumanEval: {'pass@1': ...}`.

    Raises:
        SandboxError: this machine does not give the protection that programs of models need.
    """
    from lm_core.metrics.pass_at_k import mean_pass_at_k

    problems = read_problems(args.data_path)
    if args.samples_file:
        path = Path(args.samples_file)
    else:
        _check_sampling(args)
        runner.require()  # before hours of generation
        settings = resolve_run(spec, args, overrides)
        path = Path(settings.output_dir) / SAMPLES
        if not _generate(problems, settings, args, path):
            return 0  # one rank has all samples
    samples = jsonlines.read(path, SAMPLE_FIELDS)
    counts = _counts(samples, problems, args.k, str(path))
    passed = _judge(samples, problems, args, path)
    pairs = [(number, passed[name]) for name, number in counts.items()]
    print(f"HumanEval: { {f'pass@{k}': mean_pass_at_k(pairs, k) for k in args.k} }")
    return 0


def _check_sampling(args: Namespace) -> None:
    drawn = bool(args.temperature)
    problems = []
    if args.samples > 1 and not drawn:
        problems.append(
            f"temperature: is {args.temperature or 0:g} with {args.samples} samples, which would "
            f"be equal; must be above 0; add --temperature 0.8, or use --num_samples 1"
        )
    if max(args.k) > args.samples:
        problems.append(
            f"k: is {max(args.k)}, of {args.samples} samples for each problem; must be at most "
            f"that; raise --num_samples or lower --k"
        )
    if problems:
        raise ConfigError(*problems)


def _generate(
    problems: dict[str, Problem], settings: RunConfig, args: Namespace, path: Path
) -> bool:
    """Appends the samples that are missing; whether this rank is the one that goes on."""
    from lm_core import job
    from lm_core.tasks.predict import open_pipeline

    journal = Journal(path, SAMPLE_FIELDS, _facts(problems, settings, args))
    there = journal.read()
    found = Counter(sample["task_id"] for sample in there)
    todo = [
        (number, problem)
        for number in range(args.samples)
        for problem in problems.values()
        if found[problem.task_id] <= number
    ]
    if not todo:
        return world_size() == 1 or job.join(settings).rank == 0
    generator = open_pipeline(settings, args, _options(args))
    batches = _written(generator, todo, settings.seed, args.rows)
    rank, done = generator.model.context.rank, len(there)
    journal.write(batches, rank=rank, unit="sample", done=done, total=done + len(todo))
    return rank == 0


def _options(args: Namespace) -> dict[str, Any]:
    """How tokens are chosen; nothing of it is left to the model's own settings."""
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": 1, "repetition_penalty": 1.0}
    if not args.temperature:
        return {**options, "do_sample": False}
    drawn = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    return {**options, "do_sample": True, **drawn}


def _facts(problems: dict[str, Problem], settings: RunConfig, args: Namespace) -> dict[str, Any]:
    """What samples follow from, beside their numbers."""
    prompts = json.dumps([[p.task_id, p.prompt] for p in problems.values()])
    return {
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "load_checkpoint": settings.load_checkpoint,
        "load_adapter": settings.load_adapter,
        "seed": settings.seed if args.temperature else None,
        **_options(args),
    }


def _written(
    generator: TextGenerationPipeline,
    todo: list[tuple[int, Problem]],
    seed: int,
    rows: int | None,
) -> Iterator[list[dict[str, str]]]:
    """The samples, a batch at a time."""
    ids = _encoded(generator, {problem for _, problem in todo})
    tasks = [Task(problem, ids[problem], number) for number, problem in todo]
    size = rows or generator.batch_size
    for batch in answers(
        generator, tasks, size, seed, stop=lambda answer: _is_whole(generator, answer)
    ):
        yield [
            {
                "task_id": task.key.task_id,
                "completion": _completion(generator, task.key, task.ids, row),
            }
            for task, row in batch
        ]


def _encoded(
    generator: TextGenerationPipeline, problems: Iterable[Problem]
) -> dict[Problem, list[int]]:
    """The prompts' tokens.

    Raises:
        GenerationError: the model has no room for a prompt, which should not come out at the end.
    """
    ids = {p: generator.tokenizer([p.prompt])["input_ids"][0] for p in problems}
    limit = generator.model.config.seq_length
    long = sorted(problem.task_id for problem, row in ids.items() if len(row) >= limit)
    if long:
        raise GenerationError(
            f"data_path: {some(long)}: the longest prompt has {max(map(len, ids.values()))} "
            f"tokens; must be fewer than seq_length, {limit}; use a model with a longer context"
        )
    return ids


def _is_whole(generator: TextGenerationPipeline, answer: Any) -> bool:
    text = generator.decode(answer)
    # Asked after every token: only a line that begins in the first column can be an end.
    return _FIRST_COLUMN.search(text) is not None and cut("", text) != text


def _completion(
    generator: TextGenerationPipeline, problem: Problem, prompt: list[int], row: Any
) -> str:
    """The text after the prompt, cut. A tokenizer may drop blanks at the beginning of a text."""
    whole, before = generator.decode(row), generator.decode(prompt)  # type: ignore[arg-type]
    if whole.startswith(before):
        return cut(problem.prompt, whole[len(before) :])
    return cut(problem.prompt, generator.decode(row[len(prompt) :]))


def _counts(
    samples: list[jsonlines.Record], problems: dict[str, Problem], ks: tuple[int, ...], where: str
) -> dict[str, int]:
    """How many samples each problem has.

    Raises:
        DataError: a sample without its problem, a problem without samples or with too few for k.
    """
    found = Counter(sample["task_id"] for sample in samples)
    unknown = [name for name in found if name not in problems]
    missing = [name for name in problems if not found[name]]
    few = [name for name in problems if 0 < found[name] < max(ks)]
    lines = []
    if unknown:
        lines.append(f"{where}: {some(unknown)}: not in --data_path; each must be; give its file")
    if missing:
        lines.append(f"{where}: {some(missing)}: no sample; each needs one; add it")
    if few:
        lines.append(
            f"k: is {max(ks)}, more than the samples of {some(few)} in {where}; must be at most "
            f"{min(found[name] for name in few)}; lower --k or add samples"
        )
    if lines:
        raise DataError(*lines)
    return {name: found[name] for name in problems}


def _judge(
    samples: list[jsonlines.Record], problems: dict[str, Problem], args: Namespace, path: Path
) -> Counter[str]:
    """Runs the samples that have no result yet; how many of each problem passed."""
    target = Path(f"{path}{RESULTS}")
    done = jsonlines.read(target, SAMPLE_FIELDS, torn=True) if target.exists() else []
    same = [all(a[n] == b[n] for n in SAMPLE_FIELDS) for a, b in zip(done, samples, strict=False)]
    if len(done) > len(samples) or not all(same):
        raise DataError(
            f"{target}: holds results of other samples than {path}; must be of these, in their "
            f"order; delete it to run all of them"
        )
    if len(done) < len(samples):
        runner.require()
        get_logger(__name__).info("results go to %s", target)
    results = list(done)
    limits = Limits(seconds=args.timeout, wall_seconds=float(_WALL * args.timeout))
    todo = samples[len(done) :]
    tasks = [_task(problems[sample["task_id"]], sample["completion"]) for sample in todo]
    with (
        jsonlines.Writer(target) as file,
        progress(total=len(samples), desc="run", unit="program", initial=len(done)) as bar,
    ):
        found = runner.run_all(tasks, limits, args.workers or runner.default_workers())
        for sample, result in zip(todo, found, strict=True):
            results.append({**sample, "result": result, "passed": result == PASSED})
            file.write(results[-1:])
            bar.update()
    return Counter(record["task_id"] for record in results if record.get("passed") is True)


def _task(problem: Problem, completion: str) -> runner.Task:
    return runner.Task(
        program=problem.program(completion),
        prompt=problem.prompt,
        test=problem.test,
        entry_point=problem.entry_point,
    )
