"""Files and directories that are there whole or not at all.

A directory is written beside its target under a hidden name, gets a manifest (size and SHA-256 of
every file), is flushed to the disk, and takes the target's name by one rename. Where a target
exists the two names are exchanged in one system call, so at no moment is there no checkpoint; where
the file system cannot exchange, the old directory steps aside for the instant between two renames,
and whoever comes next puts it back if the writer died in that instant.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from lm_core.errors import CheckpointError
from lm_core.log import byte_count, get_logger

MANIFEST = "manifest.json"

_WEIGHTS = ("*.safetensors", "*.ckpt", "*.bin", "*.pth", "*.index.json")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def new_directory(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty directory to fill; it becomes `target`, with a manifest, when the block ends.

    An exception in the block leaves `target` as it was.

    Files of an existing target that no checkpoint wrote (a tokenizer, notes) are kept; its old
    checkpoint is replaced.

    Args:
        target: the directory to make.
        overwrite: replace a checkpoint that is there already.

    Raises:
        CheckpointError: `target` is there and may not be replaced, or cannot be written.
    """
    target = Path(os.path.realpath(target))
    recover(target)
    foreign = check_target(target, overwrite)
    temporary = sibling(target, "tmp")
    try:
        clear_leftovers(target.parent, target.name)
        _make_folder(target.parent)
        temporary.mkdir()
        yield temporary
        seal(temporary)
        for name in foreign:
            if not (temporary / name).exists():
                _link(target / name, temporary / name)
        _sync_tree(temporary)
        _replace_directory(temporary, target)
    except OSError as error:
        if not _is_about(error, temporary):
            raise
        raise CheckpointError(_explain(error, target)) from error
    except CheckpointError as error:
        # Users know the name that the directory was to have.
        named = (problem.replace(temporary.name, target.name) for problem in error.problems)
        raise CheckpointError(*named) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """Yields a path to write; it becomes `target` when the block ends without an exception."""
    target = Path(os.path.realpath(target))
    temporary = sibling(target, "tmp")
    try:
        _make_folder(target.parent)
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        if not _is_about(error, temporary):
            raise
        raise CheckpointError(_explain(error, target)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_directory(target: str | Path) -> None:
    """Deletes a directory; killed half-way, it leaves nothing that looks like a checkpoint."""
    target = Path(os.path.realpath(target))
    aside = sibling(target, "tmp")
    target.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def require_space(directory: str | Path, needed: int) -> None:
    """Raises CheckpointError if the disk of `directory` has less than `needed` bytes free."""
    place = Path(os.path.abspath(directory))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{directory}: {byte_count(free)} are free here; {byte_count(needed)} are needed; "
            f"free some space or choose another directory"
        )


def seal(directory: Path) -> None:
    """Writes the manifest of the files that are in `directory` now."""
    names = [name for name in _files(directory) if name != MANIFEST]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_digest, (directory / name for name in names)))
    files = {
        name: {"size": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    (directory / MANIFEST).write_bytes(_render(files))


def verify(directory: str | Path) -> list[str]:
    """What is wrong with the files of a checkpoint directory, one line each; empty if all is well.

    Reads every file once: 0.6 s per GB and core where the processor has SHA instructions.
    """
    directory = Path(directory)
    try:
        files = read_manifest(directory)
    except CheckpointError as error:
        return list(error.problems)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(lambda item: _verify_file(directory / item[0], item[1]), files.items())
        return [problem for problem in problems if problem]


def check_file(path: str | Path) -> None:
    """Raises CheckpointError if a file is not as the manifest beside it says; without, nothing."""
    path = Path(path)
    if not (path.parent / MANIFEST).exists():
        return
    expected = read_manifest(path.parent).get(path.name)
    problem = _verify_file(path, expected) if expected else ""
    if problem:
        raise CheckpointError(problem)


def check(directory: str | Path) -> None:
    """Raises CheckpointError with every line of `verify`."""
    problems = verify(directory)
    if problems:
        raise CheckpointError(*problems)


def read_manifest(directory: str | Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 by relative path.

    Raises:
        CheckpointError: the manifest is missing or not as it was written.
    """
    path = Path(directory) / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: missing; a complete checkpoint has one; "
            f"use another checkpoint, this one was not finished"
        ) from error
    try:
        files = json.loads(data)["files"]
        intact = data == _render(files)
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CheckpointError(
            f"{path}: damaged; it must be as it was written; use another checkpoint"
        )
    return files


def recover(target: str | Path) -> None:
    """Puts back a directory that stepped aside for a writer who then died."""
    target = Path(os.path.realpath(target))
    if target.exists() or not _siblings(target, "old"):
        return
    time.sleep(0.2)  # A living writer needs far less between its two renames.
    aside = sorted(_siblings(target, "old"), key=lambda path: path.stat().st_mtime)
    if aside and not target.exists():
        get_logger(__name__).warning(
            "%s: a writer died while replacing it; the old one is back", target
        )
        os.rename(aside[-1], target)


def clear_leftovers(folder: Path, name: str = "") -> None:
    """Removes what writers of this machine left in a folder when they were killed.

    Args:
        folder: where.
        name: of the target that they were writing; "": any.
    """
    host = re.escape(socket.gethostname())
    pattern = rf"\.({re.escape(name) or '.+'})\.(tmp|old)-{host}-(\d+)-\w+"
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = re.fullmatch(pattern, path.name)
        if not match or _alive(int(match[3])):
            continue
        if match[2] == "old" and not (folder / match[1]).exists():
            continue  # The only copy: `recover` puts it back.
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and flushes their names to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def check_target(target: Path, overwrite: bool) -> list[str]:
    """The files in an existing target that are not ours. Raises if it must not be touched."""
    if not target.exists():
        return []
    if not target.is_dir():
        raise CheckpointError(
            f"{target}: is a file; a directory is to be written there; choose another name"
        )
    names = sorted(os.listdir(target))
    if not names:
        return []
    if not (target / MANIFEST).exists() and any(list(target.glob(pattern)) for pattern in _WEIGHTS):
        raise CheckpointError(
            f"{target}: holds weights without {MANIFEST}; "
            f"only checkpoints that lm wrote are replaced; choose another directory"
        )
    ours = _own_files(target)
    if ours and not overwrite:
        raise CheckpointError(
            f"{target}: holds a checkpoint; it is replaced only if asked; "
            f"pass --overwrite (overwrite=True) or choose another directory"
        )
    foreign = [
        name
        for name in names
        if name not in ours and not any(n.startswith(f"{name}/") for n in ours)
    ]
    folders = [name for name in foreign if not (target / name).is_file()]
    if folders:
        raise CheckpointError(
            f"{target}: holds {', '.join(folders)}; a checkpoint directory has no folders of "
            f"others; choose another directory"
        )
    return foreign


def _own_files(target: Path) -> set[str]:
    """The names in `target` that the checkpoint there is made of."""
    if not (target / MANIFEST).exists():
        return set()
    try:
        return {MANIFEST, *read_manifest(target)}
    except CheckpointError:  # Damaged: it is replaced like any other, so go by the names.
        weights = {path.name for pattern in _WEIGHTS for path in target.glob(pattern)}
        return {MANIFEST, "config.json", *weights}


def _replace_directory(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        aside = sibling(target, "old")
        os.rename(target, aside)
        os.rename(temporary, target)
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step (Linux). False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def sibling(target: Path, kind: str) -> Path:
    """A hidden name beside the target that says whose it is."""
    return (
        target.parent
        / f".{target.name}.{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    )


def _siblings(target: Path, kind: str) -> list[Path]:
    start = f".{target.name}.{kind}-"
    return (
        [path for path in target.parent.iterdir() if path.name.startswith(start)]
        if target.parent.is_dir()
        else []
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _files(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(files: Mapping[str, Mapping[str, object]]) -> bytes:
    # A checksum of its own tells a damaged manifest from a damaged file.
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    values = {"version": 1, "files": files, "sha256": own}
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def _verify_file(path: Path, expected: dict[str, object]) -> str:
    try:
        size = path.stat().st_size
        if size != expected["size"]:
            return (
                f"{path}: has {size} bytes; must be {expected['size']}; "
                f"the file is damaged: use another checkpoint"
            )
        if _digest(path) != expected["sha256"]:
            return (
                f"{path}: is not as it was written (SHA-256 in {MANIFEST}); damaged or edited; "
                f"use another checkpoint, or delete {MANIFEST} if the change is yours"
            )
    except FileNotFoundError:
        return f"{path}: missing; {MANIFEST} lists it; use another checkpoint"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); use another checkpoint"
    return ""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _sync(path)


def _is_about(error: OSError, temporary: Path) -> bool:
    """Whether writing failed, as opposed to something else that happened meanwhile."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return True
    if temporary.name in str(error.filename) or temporary.name in str(error.filename2):
        return True
    return error.filename in map(str, temporary.parents)


def _explain(error: OSError, target: Path) -> str:
    advice = {
        errno.ENOSPC: "free some space or choose another directory",
        errno.EROFS: "choose a directory that can be written",
        errno.EACCES: "choose a directory that can be written",
    }.get(error.errno or 0, "choose another directory")
    return (
        f"{target}: cannot be written ({error.strerror or error}); "
        f"what was there before is unchanged; {advice}"
    )
