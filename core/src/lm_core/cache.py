"""What takes long to compute, kept for the next process: arrays in a folder of the user's alone.

The folder is `lm` in `XDG_CACHE_HOME`, or in `~/.cache`. Where others could have put something
there nothing is read, and where nothing can be written the next process computes again.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from lm_core.log import notice_once

Arrays = Mapping[str, np.ndarray]


def kept(name: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, by this or by an earlier process.

    Args:
        name: says what it is, and changes whenever that would be something else.
        make: computes it.
    """
    folder = _folder()
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    found = _read(path)
    if found is None:
        found = make()
        with suppress(OSError):
            _write(path, found)
    return found


def _folder() -> Path | None:
    """The user's own folder; None: there is none that can be trusted."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        folder = base / "lm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError):  # no home, or none that can be written
        return None
    if stat.S_ISDIR(status.st_mode) and _is_private(status):
        return folder
    notice_once(
        str(folder),
        f"{folder}: is not used to keep what takes long to read; must be a folder of yours that "
        f"nobody else can write; chmod 700 it, or remove it",
    )
    return None


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _read(path: Path) -> Arrays | None:
    """Arrays of a file; each has a checksum. None: the file is missing, damaged or of others."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and _is_private(status)):
                return None
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Under a name of its own first, so that whoever reads finds all of it or nothing."""
    number, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(number, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(scratch, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
