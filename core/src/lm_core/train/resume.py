"""Finding the checkpoint that a run goes on from, on every rank the same step.

A job whose parts lie as its own ranks need them goes on from the newest step that every rank has
undamaged, and each rank looks at its own part alone. Parts of other degrees are cut anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.checkpoint import atomic, hub, rankfolders, ranks, saved
from lm_core.checkpoint.parts import Layout
from lm_core.checkpoint.rankfolders import Step
from lm_core.errors import CheckpointError
from lm_core.log import get_logger
from lm_core.parallel.partition import Partition
from lm_core.peft import targets
from lm_core.train import session, state
from lm_core.train.agreement import Agreement

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.context import ParallelContext


def find(run: RunConfig, context: ParallelContext) -> Path | None:
    """The directory that this rank goes on from; None for a run that begins.

    Args:
        run: `resume_training` says which checkpoint is meant (`state.find`).
        context: the place of this process.

    Raises:
        CheckpointError: there is no such checkpoint, or none that is undamaged on all ranks.
    """
    wanted = run.resume_training
    if wanted is False or wanted == "":
        return None
    folder, number = _meant(run, wanted)
    found = rankfolders.steps(folder, saved.STATE)
    alone = context.world_size == 1 and all(one.layout.world_size == 1 for one in found)
    if alone:
        return state.find(wanted, session.checkpoint_folder(run))
    agreement = Agreement(context)
    if not agreement.any(bool(found)):
        return _nothing(wanted, folder)
    return _of_ranks(run, context, agreement, folder, number)


def _meant(run: RunConfig, wanted: bool | str) -> tuple[Path, int | None]:
    """The folder of the ranks, and the step if one is named."""
    output = session.checkpoint_folder(run).parent
    if wanted is True:
        return output, None
    if str(wanted).isdigit():
        return output, int(wanted)
    path = Path(str(wanted)).expanduser()
    named = saved.step_of(path) if (path / saved.STATE).is_file() else -1
    return path, named if named >= 0 else None


def _nothing(wanted: bool | str, folder: Path) -> None:
    if wanted is not True:
        raise CheckpointError(
            f"resume_training: {folder} holds no training checkpoint; name one, a folder with "
            f"some, a step, or true for the newest of output_dir"
        )
    get_logger(__name__).warning("%s holds no checkpoint yet; starting at step 0", folder)


def _of_ranks(
    run: RunConfig,
    context: ParallelContext,
    agreement: Agreement,
    folder: Path,
    number: int | None,
) -> Path:
    config = run.model.config
    family = hub.family_of(config)
    partition = Partition(config, context.degrees, targets.shapes(family, config))
    found = rankfolders.steps(folder, saved.STATE)
    target = Layout.of(partition.degrees, context.rank)
    alike = [step for step in found if step.layout.same_state(target)]
    step = number
    if step is None:
        step = agreement.newest_common([one.step for one in alike if _is_good(one, target)])
    if step is None:
        # The parts of all ranks are needed, so one rank can look at them for all.
        newest = rankfolders.newest(found).step if context.rank == 0 and found else -1
        step = agreement.of_first(newest)
    scratch = Path(run.output_dir) / ranks.TRANSFORMED
    return ranks.resume_directory(folder, step, partition, context.rank, family, scratch)


def _is_good(step: Step, target: Layout) -> bool:
    """Whether this rank's part is there and undamaged; a damaged one is named."""
    own = step.layout.rank_of(target)
    if own not in step.found:
        return False
    problems = atomic.verify(step.directory(own))
    if problems:
        get_logger(__name__).warning("%s; trying the checkpoint before it", "; ".join(problems))
    return not problems
