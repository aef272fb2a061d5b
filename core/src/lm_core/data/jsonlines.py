"""Files of JSON lines: read whole or compressed, and written line by line by who may be killed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_core.errors import DataError

Record = dict[str, Any]
_MOST = 8
"""Problems that a report names."""


def read(path: str | Path, fields: Sequence[str], *, torn: bool = False) -> list[Record]:
    """The records of a file, each with texts for `fields`; `.gz` is unpacked.

    Args:
        path: UTF-8, a record a line; empty lines are skipped.
        fields: what a record must have; it may have more.
        torn: leave out a last line without a line break, of a writer that was killed.

    Raises:
        DataError: the file or its lines are otherwise.
    """
    lines = _text(Path(path), torn).split("\n")
    found: list[Record] = []
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record, problem = _record(line, fields)
        found.append(record)
        if problem:
            problems.append(f"{path}: line {number}: {problem}")
    if problems:
        raise DataError(*problems[:_MOST])
    return found


def _text(path: Path, torn: bool) -> str:
    try:
        raw = path.read_bytes()
        if torn:
            raw = raw[: raw.rfind(b"\n") + 1]
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is a damaged archive ({error}); copy the file again") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 at byte {error.start}; must be JSON lines; convert it"
        ) from error


def _record(line: str, fields: Sequence[str]) -> tuple[Record, str]:
    """A record, and what is wrong with it."""
    try:
        record = json.loads(line)
    except ValueError as error:
        return {}, f"is not JSON ({error}); must be an object a line; correct it"
    if not isinstance(record, dict):
        return {}, f"is {type(record).__name__}; must be an object with {', '.join(fields)}"
    missing = [name for name in fields if not isinstance(record.get(name), str)]
    if missing:
        return record, f"has no text {', '.join(missing)}; must have {', '.join(fields)}; add it"
    return record, ""


class Writer:
    """Appends records; a line is in the file whole, or it is torn and the next writer drops it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        # A lone surrogate becomes the escape that JSON has for it.
        self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends them and hands them to the kernel."""
        self._file.write(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        )
        self._file.flush()


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)
