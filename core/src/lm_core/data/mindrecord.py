"""MindRecord files: finding, writing and reading them.

A MindRecord is two files, `X` and its index `X.db`, and the index holds the name `X`: neither can
be renamed. So a writer works in a hidden folder beside its target under the final names, and moves
everything into place when it is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from lm_core.errors import DataError

_NAME = re.compile(r"mindrecord\d*$")
_ROWS_AT_ONCE = 256
# A file is at least one header and two pages long. 4 MiB of header describe 25,000 pages of 4 MiB.
_HEADER_BYTES = 1 << 22
_PAGE_BYTES = 1 << 22
_LARGEST_PAGE = 1 << 28

Row = Mapping[str, np.ndarray]


def find_records(path: str | Path) -> list[Path]:
    """The MindRecord files that a path names, in a fixed order.

    Args:
        path: a file, a folder (every file below it whose name ends in `mindrecord` and perhaps
            digits), or the name under which several splits were written (`X` for X0, X1, ...).

    Raises:
        DataError: there is none, or one has no index.
    """
    path = Path(path)
    if path.is_dir():
        found = [file for file in path.rglob("*") if _NAME.search(file.name) and file.is_file()]
        found = [file for file in found if not _hidden(file.relative_to(path))]
        if not found:
            raise DataError(
                f"{path}: holds no file whose name ends in mindrecord; write one with the "
                f"preprocess command or name another folder{_hint(path)}"
            )
    elif path.is_file():
        found = [path]
    else:
        found = _splits(path)
        if not found:
            raise DataError(f"{path}: no such file or folder; name a MindRecord file or its folder")
    for file in found:
        if not _index(file).exists():
            raise DataError(
                f"{file}: its index {file.name}.db is missing; the two belong together: copy it "
                f"too, or write the file again"
            )
    return sorted(found, key=_natural)


class RecordWriter:
    """Writes rows of int32 to one MindRecord or several splits: all of it, or nothing.

    Use as a context manager. When the block ends well the files appear under their names and
    replace those of an earlier run; when it ends in an exception (Ctrl-C too) nothing is changed.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], splits: int = 1) -> None:
        """Prepares to write.

        Args:
            path: the file; with several splits their names are this one with digits added.
            columns: names of the columns, each a vector of int32.
            splits: number of files.

        Raises:
            DataError: the name or the number of splits is impossible.
        """
        self.path = Path(os.path.abspath(path))
        self.columns = tuple(columns)
        self.splits = splits
        self.rows = 0
        self._waiting: list[dict[str, np.ndarray]] = []
        self._writer: Any = None
        self._scratch = self.path.with_name(f"{_scratch_prefix(self.path)}{os.getpid()}")
        if not _NAME.search(self.path.name):
            raise DataError(
                f"output_file: {path} must end in mindrecord, or a folder of such files would not "
                f"find it; use {path}.mindrecord"
            )
        if not 1 <= splits <= 1000:
            raise DataError(
                f"num_splits: is {splits}; must be from 1 to 1000; 1 is right but for large data"
            )
        if self.path.is_dir():
            raise DataError(f"output_file: {path} is a folder; name a file in it")

    def __enter__(self) -> Self:
        _clear_leftovers(self.path)
        try:
            self._scratch.mkdir(parents=True)
        except OSError as error:
            raise DataError(
                f"output_file: {self.path} cannot be written: {error.strerror}; name another place"
            ) from error
        return self

    def write(self, row: Row) -> None:
        """Adds a row; every column is a vector of int32 [L]."""
        for name in self.columns:
            value = row[name]
            assert value.dtype == np.int32 and value.ndim == 1, f"{name} is no vector of int32"
        self._waiting.append({name: row[name] for name in self.columns})
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            _discard(self._scratch, self.path)

    def _flush(self) -> None:
        from mindspore.mindrecord import FileWriter, MindRecordException

        if not self._waiting:
            return
        try:
            if self._writer is None:
                writer = FileWriter(str(self._scratch / self.path.name), self.splits)
                writer.set_header_size(_HEADER_BYTES)
                writer.set_page_size(_page_bytes(self._waiting[0]))
                schema = {name: {"type": "int32", "shape": [-1]} for name in self.columns}
                writer.add_schema(schema, "lm")
                self._writer = writer
            self.rows += len(self._waiting)
            self._writer.write_raw_data(self._waiting)
        except (MindRecordException, RuntimeError, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be written: {_first_line(error)}; "
                "make room, or name another place"
            ) from error
        self._waiting = []

    def _commit(self) -> None:
        from mindspore.mindrecord import MindRecordException

        self._flush()
        if not self.rows:
            raise DataError(f"{self.path}: there is no row to write; see the counts of the input")
        if self.rows < self.splits:
            raise DataError(f"num_splits: {self.splits} files for {self.rows} rows; use fewer")
        try:
            self._writer.commit()
        except (MindRecordException, RuntimeError, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be written: {_first_line(error)}; "
                "make room, or name another place"
            ) from error
        # MindRecord drops a row that it does not like with no more than a warning.
        sizes = (open_records([file]).get_dataset_size() for file in find_records(self._scratch))
        if (written := sum(sizes)) != self.rows:
            raise DataError(
                f"{self.path}: {written} of {self.rows} rows were written; "
                "see whether the disk is full, and write it again"
            )
        for file in self._scratch.iterdir():
            file.chmod(0o666 & ~_umask())
            _sync(file)
        _move_into_place(self._scratch, self.path)


def open_records(
    files: Sequence[Path], columns: Sequence[str] | None = None, rows: Sequence[int] | None = None
) -> Any:
    """A `mindspore.dataset.MindDataset` over files, in order, or over the given rows of them.

    Raises:
        DataError: a file cannot be opened.
    """
    import mindspore.dataset as ds

    names = [str(file) for file in files]
    order = {"shuffle": False} if rows is None else {"sampler": ds.SubsetSampler(list(rows))}
    chosen = None if columns is None else list(columns)
    try:
        records = ds.MindDataset(names, chosen, num_parallel_workers=1, **order)
        records.get_dataset_size()
    except (RuntimeError, ValueError) as error:
        raise DataError(*_explain(files, error)) from error
    return records


def iterate(records: Any, files: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    """The rows of what `open_records` gave.

    Raises:
        DataError: a file is damaged.
    """
    try:
        yield from records.create_dict_iterator(num_epochs=1, output_numpy=True)
    except RuntimeError as error:
        raise DataError(*_explain(files, error)) from error


def _explain(files: Sequence[Path], error: Exception) -> list[str]:
    """MindSpore's page of text as one line for each file that is to blame."""
    renamed = [(file, name) for file in files if (name := _stored_name(file)) != file.name]
    if renamed:
        return [
            f"{file}: its index says {name!r}; a MindRecord cannot be renamed: give it that name "
            f"back (the .db file too) or write it again"
            if name
            else f"{file}.db: is damaged; write the file again"
            for file, name in renamed
        ]
    shown = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return [f"{shown}: cannot be read: {_first_line(error)}; write the file again"]


def _stored_name(file: Path) -> str | None:
    address = f"{_index(file).as_uri()}?mode=ro"
    with suppress(sqlite3.Error), closing(sqlite3.connect(address, uri=True)) as db:
        row = db.execute("SELECT NAME FROM SHARD_NAME").fetchone()
        return row and row[0]
    return None


def _first_line(error: Exception) -> str:
    lines = [line.removeprefix("[ERROR] ").strip() for line in str(error).splitlines()]
    noise = ("Exception thrown", "- Dataset Pipeline", "---", "Line of code")
    told = (line.rstrip(".") for line in lines if line and not line.startswith(noise))
    return next(told, "no reason given")


def _move_into_place(scratch: Path, target: Path) -> None:
    """Gives the new files their names. Whatever stops it half-way, `_discard` puts the old back.

    An index moves last: data without an index is not read, so a reader never sees a mixture.
    """
    new = sorted(scratch.iterdir(), key=lambda file: file.suffix == ".db")
    (scratch / "taking").mkdir()
    for path in _family(target):
        for file in filter(Path.exists, (_index(path), path)):
            os.replace(file, scratch / "taking" / file.name)
    os.rename(scratch / "taking", scratch / "taken")
    for file in new:
        os.replace(file, target.parent / file.name)
    _sync(target.parent)


def _discard(scratch: Path, target: Path) -> None:
    """Removes a writer's folder; the old files come back unless all new ones are in place."""
    taking, taken = scratch / "taking", scratch / "taken"
    if taken.is_dir() and any(file.is_file() for file in scratch.iterdir()):
        for path in _family(target):
            _index(path).unlink(missing_ok=True)
            path.unlink()
        os.rename(taken, taking)
    for file in taking.iterdir() if taking.is_dir() else ():
        os.replace(file, target.parent / file.name)
    shutil.rmtree(scratch, ignore_errors=True)


def _clear_leftovers(target: Path) -> None:
    """Ends the work of writers of `target` that were killed on this machine."""
    start = _scratch_prefix(target)
    for scratch in list(target.parent.glob("*")) if target.parent.is_dir() else ():
        pid = scratch.name.removeprefix(start)
        if pid != scratch.name and pid.isdigit() and not _alive(int(pid)):
            _discard(scratch, target)


def _scratch_prefix(target: Path) -> str:
    return f".{target.name}.tmp-{socket.gethostname()}-"


def _family(target: Path) -> list[Path]:
    """The files that a writer of `target` may have made: `target` and its splits."""
    whole = [target] if target.exists() else []
    return whole + _splits(target)


def _splits(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    name = re.compile(re.escape(path.name) + r"\d+")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))


def _index(file: Path) -> Path:
    return Path(os.path.abspath(file)).with_name(f"{file.name}.db")


def _page_bytes(row: Row) -> int:
    """A power of two that holds a row; 5 bytes are the most that an id takes."""
    needed = 2 * sum(5 * value.size + 64 for value in row.values())
    page = max(_PAGE_BYTES, 1 << needed.bit_length())
    if page > _LARGEST_PAGE:
        raise DataError(f"max_length: rows of {needed // 2} bytes do not fit; use less")
    return page


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts x2 before x10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _alive(pid: int) -> bool:
    """Whether another process runs under this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hint(folder: Path) -> str:
    """For a folder with data that another loader reads."""
    if not any((folder / name).is_file() for name in ("train.json", "dev.json")):
        return ""
    return (
        "; its JSON is read with data_loader.type=ADGenDataLoader, as run files for such data "
        "have it (--config)"
    )
