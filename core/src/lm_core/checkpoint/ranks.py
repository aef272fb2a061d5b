"""What each rank of a run loads, and goes on from, whatever cut the checkpoint has."""

from __future__ import annotations

from collections.abc import Callable, Collection
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
from lm_core.errors import CheckpointError, some
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
    step: int | None = None,
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
        step: which checkpoint of a run in parts; None: the last one that all ranks have undamaged.
            Where disks are not shared the ranks must agree on one.
        lenient: `absent` and `spare`, as for `Source.tensors`.

    Raises:
        CheckpointError: no weights, damaged ones, ones that do not fit, or of other degrees.
    """
    if src_strategy:
        foreign = _Foreign(Path(path).expanduser(), strategy.read(src_strategy), auto_trans)
        tensors = foreign.tensors(spec, config, **lenient)
        return Sharded(tensors, partition, rank)
    found = rankfolders.steps(path, saved.CONFIG)
    target = Layout.of(partition.degrees, rank)
    if not auto_trans:
        _require_loadable(found, target)
    chosen = _choose(path, found, step, target, Layout.same_weights) if found else None
    if chosen is not None and chosen.layout.cuts_weights:
        tensors = _part(chosen, partition, rank, spec, Path(scratch))
        return _fitting(tensors, partition, rank, **lenient)
    whole = path if chosen is None else chosen.directory(chosen.found[0])
    tensors = whole_tensors(source_of(whole, spec, config), config, **lenient)
    return Sharded(tensors, partition, rank)


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
    target = Layout.of(partition.degrees, rank)
    found = rankfolders.steps(folder, saved.STATE)
    chosen = _choose(folder, found, step, target, Layout.same_state)
    if chosen.layout.same_state(target):
        return chosen.directory(chosen.layout.rank_of(target))
    get_logger(__name__).info("%s: recutting (%s) for (%s)", chosen.where, chosen.layout, target)
    return _recut_for(chosen, partition, rank, spec, Path(scratch))


def _choose(
    folder: str | Path,
    found: list[Step],
    number: int | None,
    target: Layout,
    same: Callable[[Layout, Layout], bool],
) -> Step:
    """The checkpoint that a rank reads, undamaged.

    Where only one can be meant and it is cut alike, a rank looks at its own part alone: those of
    other machines need not be here. Otherwise all ranks must come to the same choice.
    """
    chosen = [one for one in found if number in (None, one.step)]
    if not chosen:
        known = ", ".join(str(one.step) for one in found) or "none"
        wanted = "" if number is None else f" of step {number}"
        raise CheckpointError(
            f"{folder}: has no checkpoint{wanted}; it has {known}; name one of these or another "
            f"folder"
        )
    if len(chosen) > 1 or not same(chosen[0].layout, target):
        return rankfolders.newest(chosen)
    if target.world_size > 1 or chosen[0].layout.world_size > 1:
        _raise(chosen[0].problems([chosen[0].layout.rank_of(target)]))
    return chosen[0]


def _recut_for(
    step: Step,
    partition: Partition,
    rank: int,
    spec: ModelSpec,
    scratch: Path,
    *,
    with_state: bool = True,
) -> Path:
    """A directory with a rank's part, which is written here."""
    name = step.name.replace("/", "-") or step.folder.resolve().name
    directory = scratch / name / f"rank_{rank}"
    with atomic.new_directory(directory, overwrite=True) as made:
        source = strategy_of(step, spec)
        write_part(made, step, source, partition, rank, with_state=with_state)
    return directory


def _part(step: Step, partition: Partition, rank: int, spec: ModelSpec, scratch: Path) -> Tensors:
    """A rank's weights: those of its own folder, or recut ones."""
    target = Layout.of(partition.degrees, rank)
    if step.layout.same_weights(target):
        return io.open_directory(step.directory(step.layout.rank_of(target)))
    return io.open_directory(_recut_for(step, partition, rank, spec, scratch, with_state=False))


def _require_loadable(found: list[Step], target: Layout) -> None:
    """Raises CheckpointError if all that there is would have to be recut."""
    if found and all(
        step.layout.cuts_weights and not step.layout.same_weights(target) for step in found
    ):
        raise CheckpointError(
            f"{found[0].where}: was written with {found[0].layout}; this run has {target}; set "
            f"auto_trans_ckpt: True to recut it on loading, or parallel_config as it was"
        )


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
        f"{tensors.where}: {what} {some(names)}; must be what rank {rank} of this run "
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

    def tensors(self, spec: ModelSpec, config: ModelConfig, **lenient: Collection[str]) -> Tensors:
        """All weights, under our own names."""
        merged = Transformed(self._open, self._strategy, strategy.WHOLE, 0)
        layout = hub.layout_of(spec, config, merged)
        return table_of(spec, layout).load(merged, config, **lenient)

    def _open(self, rank: int) -> Tensors:
        return io.open_file(self._files[rank])
