"""What each rank of a run loads, and goes on from, whatever cut the checkpoint has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.checkpoint import atomic, hub, io, rankfolders, saved
from lm_core.checkpoint.layout.tensors import Tensors
from lm_core.checkpoint.parts import Layout, Sharded
from lm_core.checkpoint.rankfolders import Step
from lm_core.checkpoint.recut import (
    require_ranks,
    source_of,
    strategy_of,
    whole_tensors,
    write_part,
)
from lm_core.checkpoint.source import table_of
from lm_core.checkpoint.transform import Transformed
from lm_core.errors import CheckpointError
from lm_core.log import get_logger
from lm_core.parallel import strategy
from lm_core.parallel.partition import Partition
from lm_core.parallel.strategy import Strategy
from lm_core.peft import layout as adapter_layout
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec

TRANSFORMED = "transformed_checkpoint"
"""The folder below a run's output with parts that were recut for it."""


def open_for(
    path: str | Path,
    config: ModelConfig,
    spec: ModelSpec,
    partition: Partition,
    rank: int,
    auto_trans: bool,
    scratch: str | Path,
    src_strategy: str | Path | None = None,
    **lenient: Collection[str],
) -> Tensors:
    """The tensors that a rank of a run holds of the weights that `path` names.

    A whole model of any layout is cut as it is read. Parts that are cut alike are read as they are.

    Args:
        path: as for `hub.resolve`, or folders of ranks (`rankfolders.steps`).
        config: the architecture to fit them to.
        spec: its family.
        partition: how the run cuts it.
        rank: of this process.
        auto_trans: recut parts of other degrees.
        scratch: where recut parts are written, `<name>/rank_R`; TRANSFORMED of the run's output.
        src_strategy: the strategy file or folder of parts that others wrote.
        lenient: `absent` and `spare`, as for `Source.tensors`.

    Raises:
        CheckpointError: no weights, damaged ones, ones that do not fit, or of other degrees.
    """
    if src_strategy:
        foreign = _Foreign(Path(path).expanduser(), strategy.read(src_strategy), auto_trans)
        tensors = foreign.tensors(spec, config, Path(scratch), **lenient)
        return Sharded(tensors, partition, rank)
    found = rankfolders.steps(path, saved.CONFIG)
    step = rankfolders.newest(found) if found else None
    if step is None or step.layout.world_size == 1:
        whole = path if step is None else step.directory(0)
        return Sharded(
            whole_tensors(source_of(whole, spec, config), config, **lenient), partition, rank
        )
    target = Layout.of(partition.degrees, rank)
    if not step.layout.same_weights(target):
        _require_auto_trans(step, target, auto_trans)
        directory = Path(scratch) / _name(step) / f"rank_{rank}"
        with atomic.new_directory(directory, overwrite=True) as made:
            write_part(made, step, strategy_of(step, spec), partition, rank, with_state=False)
    else:
        directory = step.directory(step.layout.rank_of(target))
    return _fitting(io.open_directory(directory), partition, rank, **lenient)


def resume_directory(
    folder: str | Path,
    step: int | None,
    partition: Partition,
    rank: int,
    spec: ModelSpec,
    scratch: str | Path,
) -> Path:
    """The directory that a rank goes on from, with its weights and its optimizer state.

    That is the rank's own where the checkpoint is cut alike, else one with the same contents, cut
    for this run.

    Args:
        folder: the folder of the ranks, the output of a run, or one rank's checkpoint.
        step: which; None: the last one that all ranks have undamaged.
        partition: how the run cuts the model.
        rank: of this process.
        spec: the model family.
        scratch: where recut parts are written, `<name>/rank_R`.

    Raises:
        CheckpointError: there is no such step, parts are missing (the line says of which ranks),
            or damaged.
    """
    found = _numbered(folder, step)
    target = Layout.of(partition.degrees, rank)
    alike = [one for one in found if one.layout.same_state(target)]
    if step is not None and alike:
        # Ranks of other machines need not be here.
        own = alike[0].layout.rank_of(target)
        _raise(alike[0].problems([own]))
        return alike[0].directory(own)
    chosen = rankfolders.newest(found)
    if chosen.layout.same_state(target):
        return chosen.directory(chosen.layout.rank_of(target))
    get_logger(__name__).info("%s: recutting (%s) for (%s)", chosen.where, chosen.layout, target)
    directory = Path(scratch) / _name(chosen) / f"rank_{rank}"
    with atomic.new_directory(directory, overwrite=True) as made:
        write_part(made, chosen, strategy_of(chosen, spec), partition, rank)
    return directory


def _numbered(folder: str | Path, step: int | None) -> list[Step]:
    """The training checkpoints of a folder, or the one of a number."""
    every = rankfolders.steps(folder, saved.STATE)
    found = [one for one in every if step in (None, one.step)]
    if not found:
        known = ", ".join(str(one.step) for one in every) or "none"
        wanted = "" if step is None else f" of step {step}"
        raise CheckpointError(
            f"resume_training: {folder} has no training checkpoint{wanted}; it has {known}; name "
            f"one of these or another folder"
        )
    return found


def _require_auto_trans(step: Step, target: Layout, auto_trans: bool) -> None:
    if not auto_trans:
        raise CheckpointError(
            f"{step.where}: was written with {step.layout}; this run has {target}; set "
            f"auto_trans_ckpt: True to recut it on loading, or parallel_config as it was"
        )


def _name(step: Step) -> str:
    """What a recut checkpoint is called: the step, or else the folder."""
    return step.name.replace("/", "-") or step.folder.resolve().name


def _fitting(
    tensors: Tensors,
    partition: Partition,
    rank: int,
    absent: Collection[str] = (),
    spare: Collection[str] = (),
) -> Tensors:
    """A rank's tensors after a look at names and shapes; without those that are spare."""
    stage = Layout.of(partition.degrees, rank).place[0]
    expected = {name: partition.local_shape(name) for name in partition.names(stage)}
    if not any(map(adapter_layout.is_adapter_name, tensors.specs)):
        absent = {*absent, *filter(targets.is_adapter_parameter, expected)}
    here = tensors.specs.keys() - set(spare)
    missing = sorted(expected.keys() - here - set(absent))
    unknown = sorted(here - expected.keys())
    shaped = [
        f"{name} {list(tensors.specs[name].shape)} instead of {list(expected[name])}"
        for name in sorted(here & expected.keys())
        if tensors.specs[name].shape != expected[name]
    ]
    lines = [
        f"{tensors.where}: {what} {', '.join(names[:6])}; must be what rank {rank} of this run "
        f"holds; use the configuration that belongs to these weights"
        for what, names in (("lacks", missing), ("also has", unknown), ("has", shaped))
        if names
    ]
    _raise(lines)
    return io.Joined(tensors.where, [(tensors, here)])


def _raise(problems: list[str]) -> None:
    if problems:
        raise CheckpointError(*problems)


class _Foreign:
    """Parts that others wrote, `rank_R/*.ckpt`, and their strategy: merged as they are read."""

    def __init__(self, folder: Path, source: Strategy, auto_trans: bool) -> None:
        self.where, self._strategy = str(folder), source
        self._files = rankfolders.files(folder)
        require_ranks(self._files, source, folder)
        if not auto_trans:
            raise CheckpointError(
                f"{folder}: holds the parts of {source.world_size} ranks; set auto_trans_ckpt: "
                f"True to recut them on loading"
            )

    def tensors(
        self, spec: ModelSpec, config: ModelConfig, scratch: Path, **lenient: Collection[str]
    ) -> Tensors:
        """All weights, under our own names."""
        scratch.mkdir(parents=True, exist_ok=True)
        merged = Transformed(self._open, self._strategy, strategy.WHOLE, 0, scratch)
        layout = hub.layout_of(spec, config, merged)
        return table_of(spec, layout).load(merged, config, **lenient)

    def _open(self, rank: int) -> Tensors:
        return io.open_file(self._files[rank])
