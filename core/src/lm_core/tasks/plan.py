"""`plan`: how big a run is, and whether this machine can hold it. Nothing is built or allocated."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

from lm_core.checkpoint.tensorfile import parse_size
from lm_core.config.flags import add_run_arguments
from lm_core.config.parallel import ParallelConfig
from lm_core.nn import memory
from lm_core.parallel import machine, traffic
from lm_core.parallel.partition import Partition
from lm_core.peft import targets
from lm_core.tasks.config import looked_at

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.spec import ModelSpec

_TITLES = ("ranks", "layers", "dp", "tp", "parameters", "trained", "training", "generation")
_WIDTHS = (12, 16, 8, 6, 16, 16, 12, 12)
"""The columns of the table of ranks."""

Place = tuple[Partition, int]
"""How the model is cut, and the pipeline stage of a process."""


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints parameters, ranks, memory of training and of generation, and what the machine has."""
    look = Look.at(spec, looked_at(spec, args, overrides))
    sections = [_parameters(look), *_several(look), _training(look), _generation(look)]
    print("\n\n".join("\n".join(lines) for lines in (*sections, _verdict(look))))
    return 0


@dataclass(frozen=True)
class Look:
    """A run that is looked at.

    Attributes:
        run: all settings.
        trained: those of its parameters that are trained.
        whole: the model in one process.
        cut: the model as the run cuts it; None where it names one process.
    """

    run: RunConfig
    trained: set[str]
    whole: Partition
    cut: Partition | None

    @classmethod
    def at(cls, spec: ModelSpec, run: RunConfig) -> Look:
        """Works out what a run holds.

        Raises:
            ConfigError: its degrees do not fit the model.
        """
        config, degrees = run.model.config, run.degrees
        shapes = targets.shapes(spec, config)
        several = degrees.world_size > 1
        return cls(
            run,
            targets.trained(shapes, config.pet_config),
            Partition(config, ParallelConfig(), shapes),
            Partition(config, degrees, shapes) if several else None,
        )

    @property
    def processes(self) -> dict[str, list[Place]]:
        """Description of a process, alone or as one of several -> the places that it may have."""
        found = {}
        if self.cut is None or not self.run.use_parallel:
            found["one process"] = [(self.whole, 0)]
        if self.cut is not None:
            degrees = self.cut.degrees
            stages = range(degrees.pipeline_stage)
            found[f"each of {degrees.world_size:,}"] = [(self.cut, stage) for stage in stages]
        return found

    @property
    def columns(self) -> dict[str, Place]:
        """The processes that tables show: of a pipeline the first stage, the fullest, the last."""
        found = {}
        for name, places in self.processes.items():
            if len(places) == 1:
                found[name] = places[0]
                continue
            full = memory.fullest(self.run, places[0][0], self.trained)
            shown = sorted({0, full, len(places) - 1})
            found |= {f"stage {stage}": places[stage] for stage in shown}
        return found

    def training(self, part: Partition, stage: int) -> memory.Training:
        """The memory of training."""
        return memory.training(self.run, part, stage, self.trained)

    def generation(self, part: Partition, stage: int) -> memory.Generation:
        """The memory of generation."""
        return memory.generation(self.run, part, stage, rows=self.rows)

    @property
    def rows(self) -> int:
        """Prompts that are answered at once."""
        return self.run.predict_batch_size or 1


def _several(look: Look) -> Iterator[Iterator[str]]:
    """What several processes hold, do and send; nothing for one."""
    if look.cut is not None:
        yield _ranks(look, look.cut)
        yield _step(look, look.cut)


def _ranks(look: Look, part: Partition) -> Iterator[str]:
    """A line for each stage; its ranks hold as much each."""
    degrees = part.degrees
    yield (
        f"{degrees.world_size:,} ranks, rank = (stage x {degrees.data_parallel} + dp) "
        f"x {degrees.model_parallel} + tp"
    )
    yield "  stages" + _row(_TITLES) + "  also"
    size = degrees.data_parallel * degrees.model_parallel
    for (*_, also), run in groupby(
        range(degrees.pipeline_stage), lambda s: _content(look, part, s)
    ):
        first, *others = run
        count = 1 + len(others)
        layers = part.layers(first)
        each = f", {len(layers)} each" if others else ""
        found = (
            _span(first * size, count * size),
            _span(layers.start, count * len(layers)) + each,
            _span(0, degrees.data_parallel),
            _span(0, degrees.model_parallel),
            *_content(look, part, first)[1:-1],
        )
        yield f"  {_span(first, count):>6}{_row(found)}  {also}".rstrip()


def _content(look: Look, part: Partition, stage: int) -> tuple[int | str, ...]:
    """What stages are compared by: blocks, numbers and memory of a rank, and what else it has."""
    names = (name.split(".")[0] for name in part.names(stage))
    return (
        len(part.layers(stage)),
        f"{part.numbers(stage):,}",
        f"{part.numbers(stage, look.trained):,}",
        machine.size(look.training(part, stage).peak),
        machine.size(look.generation(part, stage).peak),
        ", ".join(dict.fromkeys(name for name in names if name != "layers")),
    )


def _row(cells: Iterable[int | str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _span(start: int, count: int) -> str:
    """(8, 4) -> "8-11"."""
    return str(start) if count == 1 else f"{start}-{start + count - 1}"


def _step(look: Look, part: Partition) -> Iterator[str]:
    """How much an update takes in, waits and sends."""
    run, degrees = look.run, part.degrees
    parts = {
        "": run.runner_config.batch_size,
        "data_parallel ": degrees.data_parallel,
        "gradient_accumulation_steps ": run.runner_config.gradient_accumulation_steps,
        "micro_batch_num ": degrees.micro_batches,
    }
    shown = (f"{name}{n}" for name, n in parts.items() if n > 1 or not name)
    records = prod(parts.values())
    tokens = records * part.config.seq_length
    yield f"an update: {records:,} records, {tokens:,} tokens ({' x '.join(shown)})"
    if degrees.pipeline_stage > 1:
        idle, batches = degrees.pipeline_stage - 1, degrees.micro_batches
        share = 100 * idle / (batches + idle)
        yield f"  stages wait for {share:.1f} % of it: {idle} of {batches} + {idle} turns"
    for name, (cut, stage) in look.columns.items():
        sent = traffic.step(run, cut, stage, look.trained)
        large = ", ".join(_sent(item) for item in sent if item.what != "scalars")
        if large:
            yield f"  {name} sends {large}"


def _sent(item: traffic.Exchange) -> str:
    """An entry for people: "tp activations 1.2 GiB in 96"."""
    return f"{item.group} {item.what} {machine.size(item.sent)} in {item.calls:,}"


def _parameters(look: Look) -> Iterator[str]:
    settings, config = look.run, look.run.model.config
    counts = memory.parts(look.whole.shapes)
    total, moving = sum(counts.values()), look.whole.numbers(0, look.trained)
    some = f"{moving:,} ({100 * moving / total:.2f} %)" if moving < total else "all"
    name = settings.trainer.model_name or config.type
    yield f"{name}: {total:,} parameters, {some} trained, {config.param_init_type}"
    for part, count in counts.items():
        yield f"  {part:<20}{count:>18,}  {100 * count / total:5.1f} %"


def _training(look: Look) -> Iterator[str]:
    settings, runner, config = look.run, look.run.runner_config, look.run.model.config
    parts = runner.gradient_accumulation_steps
    accumulated = f", {parts} of them before an update" if parts > 1 else ""
    recomputed = ", blocks recomputed" if settings.recompute_config.recompute else ""
    yield (
        f"training: {runner.batch_size} x {config.seq_length:,} tokens a process{accumulated}, "
        f"{settings.optimizer.type}{recomputed}"
    )
    yield from _table({name: asdict(look.training(*at)) for name, at in look.columns.items()})


def _generation(look: Look) -> Iterator[str]:
    config = look.run.model.config
    beams = f" x {config.num_beams} beams" if config.num_beams > 1 else ""
    capacity = memory.capacity(config)
    yield f"generation: {look.rows} x {capacity:,} tokens{beams}, the prompt included"
    yield from _table({name: asdict(look.generation(*at)) for name, at in look.columns.items()})


def _table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """A line for each kind of memory, a column for each kind of process."""
    yield " " * 22 + "".join(f"{name:>18}" for name in found)
    for kind in next(iter(found.values())):
        cells = "".join(f"{machine.size(values[kind]):>18}" for values in found.values())
        yield f"  {kind:<20}{cells}"


def _verdict(look: Look) -> Iterator[str]:
    """What there is, and what fits; of several stages the fullest counts."""
    what, there = limit(look.run)
    yield what
    if there is None:
        return
    for name, places in look.processes.items():
        training = max((look.training(*at).peak, at[1]) for at in places)
        generation = max((look.generation(*at).peak, at[1]) for at in places)
        verbs = {"training": training, "generation": generation}
        fits = (
            f"{verb} {_compared(peak, there)}{f' in stage {stage}' if len(places) > 1 else ''}"
            for verb, (peak, stage) in verbs.items()
        )
        yield f"  {name}: {', '.join(fits)}"


def _compared(peak: float, there: float) -> str:
    if peak > there:
        return f"does not fit ({machine.size(peak - there)} too much)"
    return "fits" if peak < 0.8 * there else "fits barely"


def limit(settings: RunConfig) -> tuple[str, float | None]:
    """What a process may take: in words, and in bytes where that is known.

    Raises:
        CheckpointError: `context.max_device_memory` is no size.
    """
    context = settings.context
    if machine.is_meant_for_ascend(context.device_target):
        if context.max_device_memory is None:
            return "device: Ascend; say what it has with context.max_device_memory=30GB", None
        size = parse_size(context.max_device_memory, "context.max_device_memory")
        return f"device: Ascend, {context.max_device_memory}", size
    total, free = machine.memory(), machine.free_memory()
    return f"machine: {machine.size(total)} of RAM, {machine.size(free)} of it free", free
