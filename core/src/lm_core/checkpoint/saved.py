"""The checkpoints below a folder: which there are, and the newest that is undamaged.

No file says which is the latest, since it could be wrong: the directories are looked at, and the
step is the number at the end of a directory's name. Hidden directories do not count: checkpoints
that are being written, and those of earlier runs that made room.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from lm_core.checkpoint import atomic
from lm_core.errors import CheckpointError
from lm_core.log import get_logger

STATE = "training.json"
"""The file that training goes on from."""
METRICS = "metrics.jsonl"
"""The history of the run up to the checkpoint."""
OPTIMIZER = "optimizer.safetensors"
"""The state of the optimizer."""
CONFIG = "config.json"
"""The file that makes a directory a model."""

_DEPTH = 4
_FILES = (".safetensors", ".ckpt")
_RANK = re.compile(r"rank_\d+")


def checkpoints(folder: str | Path, needs: str = "") -> list[Path]:
    """Every checkpoint in a folder or below it, damaged ones too, the last step first.

    Args:
        folder: the checkpoint itself, the folder of a run, or one between them.
        needs: a file that they must have been written with: STATE, CONFIG; "": any.
    """
    folder = Path(folder)
    found = [path for path in _candidates(folder, _DEPTH) if not needs or _had(path, needs)]
    return sorted(found, key=lambda path: (step_of(path), _written(path)), reverse=True)


def newest(folder: str | Path, needs: str = "") -> Path | None:
    """The last checkpoint below a folder that is undamaged; damaged ones are named, passed over.

    Returns:
        None where there is no checkpoint.

    Raises:
        CheckpointError: there are some and all are damaged.
    """
    damaged: list[str] = []
    for path in checkpoints(folder, needs):
        problems = atomic.verify(path)
        if not problems:
            if damaged:
                get_logger(__name__).warning("using %s, the newest that is undamaged", path)
            return path
        damaged += problems
        get_logger(__name__).warning("%s; trying the checkpoint before it", "; ".join(problems))
    if damaged:
        raise CheckpointError(*damaged)
    return None


def get_last_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint below a folder: a directory of ours, else the last weights file in it.

    Raises:
        CheckpointError: there is none, or all of ours are damaged.
    """
    found = newest(folder)
    if found is None:
        files = [path for kind in _FILES for path in Path(folder).glob(f"*{kind}")]
        found = max(files, key=lambda path: (path.stat().st_mtime, path.name), default=None)
    if found is None:
        raise CheckpointError(
            f"{folder}: holds no checkpoint; must be the output of a run, or a folder with files "
            f"that end in {' or '.join(_FILES)}; give another folder"
        )
    return str(found)


def step_of(directory: Path) -> int:
    """The step in a checkpoint's name; -1 where it has none."""
    match = re.search(r"(\d+)$", directory.name)
    return int(match[1]) if match and not _RANK.fullmatch(directory.name) else -1


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    """Directories that are, or were, a checkpoint."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    if _is_checkpoint(folder, names):
        yield folder
        return
    for name in names:
        # A writer that died while it replaced this one.
        match = re.fullmatch(r"\.(.+)\.old-.+", name)
        if match and match[1] not in names:
            atomic.recover(folder / match[1])
            name = match[1]
        if depth and not name.startswith("."):
            yield from _candidates(folder / name, depth - 1)


def _is_checkpoint(folder: Path, names: list[str]) -> bool:
    """Any one of its files may be gone or damaged; others, too, call a file manifest.json."""
    if any(map(_RANK.fullmatch, names)):
        return False  # The parts in there are.
    if STATE in names:
        return True
    return atomic.MANIFEST in names and (CONFIG in names or _listed(folder) is not None)


def _had(directory: Path, name: str) -> bool:
    """Whether a checkpoint was written with a file, which may be gone now."""
    if (directory / name).is_file():
        return True
    listed = _listed(directory)
    return listed is None or name in listed  # Where nobody knows, it is damaged and will be named.


def _listed(directory: Path) -> Collection[str] | None:
    """The files that the manifest lists; None where it is missing or damaged."""
    try:
        return atomic.read_manifest(directory).keys()
    except CheckpointError:
        return None


def _written(directory: Path) -> float:
    try:
        return (directory / atomic.MANIFEST).stat().st_mtime
    except OSError:
        return 0.0
