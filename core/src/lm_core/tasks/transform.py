"""The verb `transform`: splits, merges or recuts a checkpoint for other degrees of parallelism.

A checkpoint of ours says its model and how it is cut. Files of others, `rank_R/*.ckpt`, are cut by
what strategy files say alone, whatever model they are of.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lm_core.checkpoint.recut import Origin
    from lm_core.config.model import ModelConfig
    from lm_core.config.parallel import ParallelConfig
    from lm_core.parallel.partition import Partition
    from lm_core.parallel.strategy import Strategy
    from lm_core.spec import ModelSpec

_SECTION = "parallel_config"


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `transform`; those of strategies, folders and prefix are MindFormers'."""
    add = parser.add_argument
    add("--src_ckpt_dir", required=True, metavar="X", help="folders rank_R, or a whole model")
    add("--dst_ckpt_dir", required=True, metavar="DIR", help="directory to write")
    add(
        "--src_ckpt_strategy",
        metavar="S",
        help="strategy file, or folder of those of all ranks, if the parts do not say their cut",
    )
    add(
        "--dst_ckpt_strategy",
        metavar="S",
        help="the same for the result; without it and parallel_config.*: a whole model",
    )
    add(
        "--prefix",
        default="checkpoint_",
        metavar="P",
        help="beginning of the names of files of others: rank_R/PR.ckpt (default: checkpoint_)",
    )
    add(
        "--step",
        type=int,
        metavar="N",
        help="step of the checkpoint (default: that of the newest undamaged one)",
    )
    add(
        "--config",
        metavar="NAME",
        help="preset or run file, if a whole model does not say what it is",
    )
    add("--overwrite", action="store_true", help="replace what is there")
    parser.set_defaults(takes_run=True)
    parser.epilog = "parallel_config.model_parallel=2 ...: the degrees to cut for"


@dataclass(frozen=True)
class _Own:
    """A checkpoint that says its model."""

    origin: Origin
    cut: Strategy
    config: ModelConfig
    spec: ModelSpec


def run(spec: ModelSpec | None, args: Namespace, overrides: list[str]) -> int:
    """Transforms and says what was written.

    Raises:
        CheckpointError: parts are missing or damaged, strategies do not fit, or the result cannot
            be written. What was there is unchanged.
        ConfigError: degrees do not fit the model.
    """
    given = _degrees(overrides)
    if given is not None and _strategy(args.dst_ckpt_strategy):
        raise ConfigError(
            f"--dst_ckpt_strategy: {args.dst_ckpt_strategy} is given and {_SECTION}, too; one of "
            f"them must say how to cut; leave the other out"
        )
    own = _own(spec, args)
    if own is None:
        return _transform_files(args, given)
    return _transform_own(own, args, given)


def _transform_own(own: _Own, args: Namespace, given: ParallelConfig | None) -> int:
    from lm_core.checkpoint.atomic import new_directory
    from lm_core.checkpoint.parts import Layout
    from lm_core.checkpoint.recut import write_all
    from lm_core.log import progress

    target = _target(own, args, given)
    ranks = target.degrees.world_size
    with (
        new_directory(args.dst_ckpt_dir, overwrite=args.overwrite) as directory,
        progress(total=ranks, desc="transform", unit="rank") as bar,
    ):
        write_all(directory, own.origin, own.cut, target, bar.update)
    cut = f"rank_0 to rank_{ranks - 1}: {Layout.of(target.degrees, 0)}" if ranks > 1 else "whole"
    print(f"{args.dst_ckpt_dir}: {own.origin.where}, {cut}")
    return 0


def _transform_files(args: Namespace, given: ParallelConfig | None) -> int:
    """Cuts files of others by strategies alone."""
    from lm_core.checkpoint.atomic import new_directory
    from lm_core.checkpoint.recut import require_ranks, write_files
    from lm_core.parallel import strategy

    if given is not None:
        raise CheckpointError(
            f"{args.src_ckpt_dir}: does not say which model it is, and {_SECTION} alone does not "
            f"say how to cut it; give --dst_ckpt_strategy, or --config for a whole model"
        )
    names = (args.src_ckpt_strategy, args.dst_ckpt_strategy)
    source, target = (strategy.read(name) if _strategy(name) else strategy.WHOLE for name in names)
    files = _files(Path(args.src_ckpt_dir).expanduser())
    if source is strategy.WHOLE and len(files) > 1:
        raise CheckpointError(
            f"{args.src_ckpt_dir}: holds the parts of {len(files)} ranks and nothing says how they "
            f"are cut; give --src_ckpt_strategy"
        )
    require_ranks(files, source, args.src_ckpt_dir)
    with new_directory(args.dst_ckpt_dir, overwrite=args.overwrite) as directory:
        write_files(directory, files, source, target, args.prefix)
    print(f"{args.dst_ckpt_dir}: {args.src_ckpt_dir}, {target.world_size} rank(s)")
    return 0


def _degrees(overrides: list[str]) -> ParallelConfig | None:
    """The degrees that were named on the command line."""
    from lm_core.config.layers import Override
    from lm_core.config.parallel import ParallelConfig

    changes = [Override.parse(text) for text in overrides]
    names = [".".join(map(str, change.path)) for change in changes]
    wrong = [name for name in names if name.rpartition(".")[0] != _SECTION]
    if wrong:
        raise ConfigError(
            *(f"{key}: has no effect on transform; only {_SECTION}.* has" for key in wrong)
        )
    values = {str(change.path[-1]): change.value for change in changes}
    if not values:
        return None
    try:
        stages = ParallelConfig.parse(values).pipeline_stage
        return ParallelConfig.parse({"micro_batch_num": stages, **values})
    except ConfigError as error:
        raise ConfigError(*(f"{_SECTION}.{problem}" for problem in error.problems)) from error


def _strategy(name: str | None) -> bool:
    """Whether a strategy is given; MindFormers' scripts write "None" for a whole model."""
    return name not in (None, "", "None")


def _own(spec: ModelSpec | None, args: Namespace) -> _Own | None:
    """The source, if it is a checkpoint that says its model."""
    from lm_core.checkpoint import hub, rankfolders, recut, saved
    from lm_core.parallel import strategy

    folder = Path(args.src_ckpt_dir).expanduser()
    found = rankfolders.steps(folder, saved.CONFIG)
    if found:
        step = rankfolders.newest(_chosen(found, args.step))
        source = hub.described(step.directory(step.found[0]), spec, None)
        named = args.src_ckpt_strategy
        cut = strategy.read(named) if _strategy(named) else recut.strategy_of(step, source.spec)
        recut.require_ranks(step.found, cut, step.where)
        return _Own(step, cut, source.config, source.spec)
    described = (folder / saved.CONFIG).is_file() or hub.release_in(folder) is not None
    says_model = args.config or described or not folder.exists()
    if rankfolders.has_ranks(folder) or not says_model:
        return None
    source = recut.source_of(args.src_ckpt_dir, spec, _config(args.config))
    return _Own(recut.WholeModel(source), strategy.WHOLE, source.config, source.spec)


def _chosen(found: list, number: int | None) -> list:
    """The checkpoints of a step; all of them for None."""
    chosen = [step for step in found if number in (None, step.step)]
    if not chosen:
        known = ", ".join(str(step.step) for step in found)
        raise CheckpointError(
            f"--step: there is no checkpoint of step {number}; use one of {known}"
        )
    return chosen


def _target(own: _Own, args: Namespace, given: ParallelConfig | None) -> Partition:
    """How the result is to be cut.

    Raises:
        CheckpointError: the strategy file is not of this model.
    """
    from lm_core.config.parallel import ParallelConfig
    from lm_core.parallel import strategy
    from lm_core.parallel.partition import Partition
    from lm_core.peft import targets

    shapes = targets.shapes(own.spec, own.config)
    if not _strategy(args.dst_ckpt_strategy):
        return Partition(own.config, given or ParallelConfig(), shapes)
    wanted = strategy.read(args.dst_ckpt_strategy)
    partition = Partition(own.config, strategy.degrees(wanted), shapes)
    if not strategy.is_of(wanted, partition):
        raise CheckpointError(
            f"{args.dst_ckpt_strategy}: does not cut {own.origin.where} as lm cuts this model; "
            f"must be the strategy files of a run of it; or give {_SECTION}.model_parallel=N ..."
        )
    return partition


def _files(folder: Path) -> dict[int, Path]:
    """The files of others, by rank."""
    from lm_core.checkpoint import io, rankfolders

    if folder.is_file():
        return {0: folder}
    if rankfolders.has_ranks(folder):
        return rankfolders.files(folder)
    found = io.weight_files(folder)
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: holds {len(found)} weights files and no folders rank_R; must hold one, or "
            f"such folders; give another directory"
        )
    return {0: found[0]}


def _config(name: str | None) -> ModelConfig | None:
    from lm_core.auto import AutoConfig

    return AutoConfig.from_pretrained(name) if name else None
