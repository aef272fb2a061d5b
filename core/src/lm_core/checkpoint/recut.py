"""Writing a checkpoint that is cut in another way: one rank's part, or all that there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lm_core.checkpoint import atomic, ckpt, hub, io, parts, saved, tensorfile
from lm_core.checkpoint.layout.tensors import Memory, Tensors, total_bytes
from lm_core.checkpoint.rankfolders import Step
from lm_core.checkpoint.source import Source
from lm_core.checkpoint.transform import Transformed
from lm_core.config.of_checkpoint import RUN
from lm_core.errors import CheckpointError, some
from lm_core.parallel import strategy
from lm_core.parallel.partition import Partition
from lm_core.parallel.strategy import Strategy
from lm_core.peft import files as adapters
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec

WEIGHTS = "model.safetensors"


class Origin(Protocol):
    """A checkpoint that is read: parts (`Step`), or a whole model (`WholeModel`)."""

    @property
    def where(self) -> str: ...
    @property
    def found(self) -> Collection[int]: ...
    def directory(self, rank: int) -> Path: ...
    def open(self, rank: int, file: str) -> Tensors: ...
    def problems(self, ranks: Iterable[int] | None = None) -> list[str]: ...


@dataclass(frozen=True)
class WholeModel:
    """A whole model of any layout as the part of the only rank, under our own names.

    Attributes:
        source: where it is.
    """

    source: Source
    found: Collection[int] = (0,)

    @property
    def where(self) -> str:
        """The directory or file."""
        return str(self.source.path)

    def directory(self, rank: int) -> Path:
        """The folder of the weights."""
        assert self.source.path is not None
        return self.source.path if self.source.path.is_dir() else self.source.path.parent

    def open(self, rank: int, file: str) -> Tensors:
        """The weights, or the optimizer state beside them."""
        return self._weights if file == WEIGHTS else io.open_file(self.directory(0) / file)

    def problems(self, ranks: Iterable[int] | None = None) -> list[str]:
        """Nothing: whatever is wrong is found when it is opened."""
        return []

    @cached_property
    def _weights(self) -> Tensors:
        tensors = whole_tensors(self.source, self.source.config)
        # What only the reader of the original layout knows.
        notes = {key: text for key, text in tensors.metadata.items() if key.endswith(".prefix")}
        joined = io.Joined(tensors.where, [(tensors, tensors.specs.keys())])
        joined.metadata = notes
        return joined


def source_of(path: str | Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    """A whole model with weights, of which nothing but the configuration is read."""
    return hub.weights(path, hub.resolve(path, spec=spec, config=config))


def whole_tensors(source: Source, config: ModelConfig, **lenient: Collection[str]) -> Tensors:
    """All weights of a whole model, with the adapter that lies beside them.

    Raises:
        CheckpointError: they do not fit; or there is an adapter and the configuration has none.
    """
    tensors = source.tensors(config, **lenient)
    if source.adapter is None:
        return tensors
    if config.pet_config is None:
        raise CheckpointError(
            f"{source.adapter}: is an adapter and the run has none; set "
            f"model.model_config.pet_config (a run such as {source.spec.name}_lora has it), or "
            f"merge the adapter first"
        )
    adapter = adapters.read(source.adapter, source.spec, config)
    adapters.check_base(adapter, tensors)
    both: list[Tensors] = [tensors, Memory(adapter.arrays, adapter.where)]
    return io.Joined(tensors.where, [(part, part.specs.keys()) for part in both])


def strategy_of(step: Step, spec: ModelSpec) -> Strategy:
    """How a checkpoint in parts is cut, from the configuration that lies in it."""
    config = hub.described(step.directory(step.found[0]), spec, None).config
    own = Partition(config, step.layout.degrees, targets.shapes(spec, config))
    return strategy.of(own)


def write_part(
    directory: Path,
    origin: Origin,
    source: Strategy,
    partition: Partition,
    rank: int,
    *,
    with_state: bool = True,
) -> None:
    """Fills what `atomic.new_directory` gave with a rank's part of a checkpoint.

    Args:
        directory: what to fill.
        origin: the checkpoint.
        source: how that is cut.
        partition: the new cut.
        rank: of the new cut.
        with_state: also what training goes on from, if there is such.

    Raises:
        CheckpointError: parts are missing (one line says of which ranks) or do not fit.
    """
    target = strategy.of(partition)
    beside = origin.directory(rank if rank in origin.found else min(origin.found))
    carried = [*io.CARRIED_FILES, adapters.CONFIG]
    # Where an adapter alone is trained, it may be all that there is.
    alone = (beside / adapters.WEIGHTS).is_file() and not io.has_weights(beside)
    kinds = [adapters.WEIGHTS if alone else WEIGHTS]
    if with_state and (beside / saved.OPTIMIZER).is_file():
        kinds.append(saved.OPTIMIZER)
        carried += [saved.STATE, saved.METRICS, RUN]
    for kind in kinds:
        tensors = _recut(origin, kind, source, target, rank)
        _require_fit(tensors, target, partition, rank, complete=kind == WEIGHTS)
        atomic.require_space(directory, total_bytes(tensors))
        tensorfile.write(directory / kind, tensors)
    for name in carried:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, directory / name)
    spec = hub.family_of(partition.config)
    io.write_config(directory, spec.name, partition.config)
    if partition.degrees.world_size > 1:
        parts.write_layout(directory, partition.degrees, rank)


def write_all(
    directory: Path,
    origin: Origin,
    source: Strategy,
    partition: Partition,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Fills what `atomic.new_directory` gave with all parts, or with the whole model.

    Args:
        directory: what to fill.
        origin: the checkpoint.
        source: how that is cut.
        partition: the new cut.
        progress: told the number of ranks just written.
    """
    ranks = partition.degrees.world_size
    for rank in range(ranks):
        made = directory if ranks == 1 else directory / f"rank_{rank}"
        made.mkdir(exist_ok=True)
        write_part(made, origin, source, partition, rank)
        if ranks > 1:
            atomic.seal(made)
        progress(1)


def write_files(
    directory: Path, files: Mapping[int, Path], source: Strategy, target: Strategy, prefix: str
) -> None:
    """Fills a directory with `rank_R/<prefix>R.ckpt` (or safetensors), as others lay them out.

    Args:
        directory: what to fill.
        files: of each rank.
        source: how they are cut.
        target: how they are to be cut.
        prefix: what the names of the new files begin with.
    """
    suffix = next(iter(files.values())).suffix
    for rank in range(target.world_size):
        made = directory / f"rank_{rank}"
        made.mkdir()
        tensors = Transformed(lambda part: io.open_file(files[part]), source, target, rank)
        path = made / f"{prefix}{rank}{suffix}"
        (ckpt.write if suffix == ".ckpt" else tensorfile.write)(path, tensors)


def require_ranks(found: Collection[int], source: Strategy, where: object) -> None:
    """Raises CheckpointError if parts are missing; one line says of which ranks."""
    lacking = [str(rank) for rank in range(source.world_size) if rank not in found]
    if lacking:
        raise CheckpointError(
            f"{where}: the part of rank {', '.join(lacking)} is missing; all {source.world_size} "
            f"ranks of {source.where} must be there; copy them here"
        )


def _recut(origin: Origin, file: str, source: Strategy, target: Strategy, rank: int) -> Transformed:
    """A file of a rank of the target; all parts that it needs are there."""
    open_part: Callable[[int], Tensors] = lambda part: origin.open(part, file)  # noqa: E731
    tensors = Transformed(open_part, source, target, rank)
    lacking = tensors.needed() - set(origin.found)
    if lacking:
        raise CheckpointError(*origin.problems(lacking))
    return tensors


def _require_fit(
    tensors: Tensors, target: Strategy, partition: Partition, rank: int, *, complete: bool
) -> None:
    """The result must be this rank's part of this model, and all of it if `complete`."""
    stage = target.stages[rank // target.stage_size]
    wrong = [
        name
        for name, spec in tensors.specs.items()
        if name not in stage or stage[name].whole(spec.shape) != _shape(partition, name)
    ]
    needed = partition.names(rank // target.stage_size) if complete else []
    optional = [name for name in needed if targets.is_adapter_parameter(name)]
    if all(name not in tensors.specs for name in optional):
        needed = [name for name in needed if name not in optional]
    lacking = [name for name in needed if name not in tensors.specs]
    if wrong or lacking:
        what = f"{some(wrong)} do not fit" if wrong else f"lacks {some(lacking)}"
        raise CheckpointError(
            f"{tensors.where}: {what}; must be a checkpoint of the model that it is cut for; use "
            f"the configuration of that model or another checkpoint"
        )


def _shape(partition: Partition, name: str) -> tuple[int, ...]:
    kind = strategy.kind(name)
    weight = name.removeprefix(strategy.STATES[kind - 1]) if kind else name
    return tuple(partition.shapes.get(weight, ()))
