"""Records of JSON files: one array of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm_core.data.preprocess import Counts
from lm_core.data.text import byte_count, open_text, valid
from lm_core.errors import DataError


class JsonRecord(NamedTuple):
    """A value, where it stands ("FILE record 17", "FILE line 17"), and the bytes of it."""

    value: Any
    where: str
    size: int


def read_json_records(file: Path, counts: Counts) -> Iterator[JsonRecord]:
    """The members of an array, counted from 1, or the values of all lines but blank ones.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    with open_text(file) as handle:
        start = next((line for line in handle if line.strip()), "")
        handle.seek(0)
        if start.lstrip().startswith("["):
            yield from _array(file, "".join(valid(handle, counts)))
            return
        for number, line in enumerate(valid(handle, counts), 1):
            where = f"{file} line {number}"
            if line.strip():
                yield JsonRecord(_line(line, where), where, byte_count(line))


def _array(file: Path, text: str) -> Iterator[JsonRecord]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(f"{file} line {getattr(error, 'lineno', 1)}", error) from error
    size = byte_count(text) // max(len(values), 1)
    for number, value in enumerate(values, 1):
        yield JsonRecord(value, f"{file} record {number}", size)


def _line(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(where, error) from error


def _broken(where: str, error: Exception) -> DataError:
    reason = getattr(error, "msg", str(error))
    return DataError(
        f"{where}: is no JSON ({reason}); the file must be one array of objects, or an object a "
        f"line; mend it"
    )
