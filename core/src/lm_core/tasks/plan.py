"""`plan`: how big a run is, and whether this machine can hold it. Nothing is built or allocated."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from lm_core.checkpoint.tensorfile import parse_size
from lm_core.config.flags import add_run_arguments
from lm_core.nn import memory
from lm_core.parallel import machine
from lm_core.peft import targets
from lm_core.tasks.config import looked_at

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.spec import ModelSpec


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints parameters, memory of training and of generation, and what the machine has."""
    settings = looked_at(spec, args, overrides)
    config = settings.model.config
    shapes = targets.shapes(spec, config)
    chosen = targets.trained(shapes, config.pet_config)
    trained = {name: shape for name, shape in shapes.items() if name in chosen}
    lines = [*_parameters(settings, shapes, trained), "", *_training(settings, shapes, trained)]
    lines += ["", *_generation(settings, shapes), "", *_verdict(settings, shapes, trained)]
    print("\n".join(lines))
    return 0


def ranks(settings: RunConfig) -> dict[str, memory.Rank]:
    """What a process holds, by its description: alone, and as one of those that the run names."""
    config, degrees = settings.model.config, settings.parallel_config
    found = {} if settings.use_parallel else {"one process": memory.Rank(config.num_layers)}
    if degrees.world_size > 1:
        sharded = degrees.optimizer_shard or settings.parallel.enable_parallel_optimizer
        name = f"each of {degrees.world_size:,}"
        found[name] = memory.Rank.of(config.num_layers, degrees, bool(sharded))
    return found or {"one process": memory.Rank(config.num_layers)}


def _parameters(
    settings: RunConfig, shapes: memory.Shapes, trained: memory.Shapes
) -> Iterator[str]:
    config = settings.model.config
    counts = memory.parts(shapes)
    total, moving = sum(counts.values()), sum(memory.parts(trained).values())
    some = f"{moving:,} ({100 * moving / total:.2f} %)" if moving < total else "all"
    name = settings.trainer.model_name or config.type
    yield f"{name}: {total:,} parameters, {some} trained, {config.param_init_type}"
    for part, count in counts.items():
        yield f"  {part:<20}{count:>18,}  {100 * count / total:5.1f} %"


def _training(settings: RunConfig, shapes: memory.Shapes, trained: memory.Shapes) -> Iterator[str]:
    runner, config = settings.runner_config, settings.model.config
    parts = runner.gradient_accumulation_steps
    accumulated = f", {parts} of them before an update" if parts > 1 else ""
    recomputed = ", blocks recomputed" if settings.recompute_config.recompute else ""
    yield (
        f"training: {runner.batch_size} x {config.seq_length:,} tokens a process{accumulated}, "
        f"{settings.optimizer.type}{recomputed}"
    )
    found = {
        name: asdict(memory.training(settings, shapes, rank, trained))
        for name, rank in ranks(settings).items()
    }
    yield from _table(found)


def _generation(settings: RunConfig, shapes: memory.Shapes) -> Iterator[str]:
    config = settings.model.config
    rows = settings.predict_batch_size or 1
    beams = f" x {config.num_beams} beams" if config.num_beams > 1 else ""
    yield f"generation: {rows} x {memory.capacity(config):,} tokens{beams}, the prompt included"
    found = {
        name: asdict(memory.generation(settings, shapes, rank, rows=rows))
        for name, rank in ranks(settings).items()
    }
    yield from _table(found)


def _table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """A line for each kind of memory, a column for each kind of process."""
    yield " " * 22 + "".join(f"{name:>18}" for name in found)
    for kind in next(iter(found.values())):
        cells = "".join(f"{machine.size(values[kind]):>18}" for values in found.values())
        yield f"  {kind:<20}{cells}"


def _verdict(settings: RunConfig, shapes: memory.Shapes, trained: memory.Shapes) -> Iterator[str]:
    """What there is, and what fits."""
    what, there = limit(settings)
    yield what
    if there is None:
        return
    rows = settings.predict_batch_size or 1
    for name, rank in ranks(settings).items():
        peaks = {
            "training": memory.training(settings, shapes, rank, trained).peak,
            "generation": memory.generation(settings, shapes, rank, rows=rows).peak,
        }
        fits = (f"{verb} {_compared(peak, there)}" for verb, peak in peaks.items())
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
