"""JSON files: records (one array of objects, or an object a line), or one value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm_core.data.preprocess import Counts
from lm_core.data.text import byte_count, open_text, valid
from lm_core.errors import DataError
from lm_core.log import get_logger

log = get_logger(__name__)
_RECORDS = "one array of objects, or an object a line"


class JsonRecord(NamedTuple):
    """A value, where it stands ("FILE record 17", "FILE line 17"), and the bytes of it."""

    value: Any
    where: str
    size: int


def read_json_records(file: Path, counts: Counts, broken: str = "") -> Iterator[JsonRecord]:
    """The members of an array, counted from 1, or the values of all lines but blank ones.

    Args:
        file: UTF-8.
        counts: gets what was left out.
        broken: as what a line that is no JSON is left out and counted; "": it is an error.

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
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not broken:
                    raise _broken(where, error) from error
                leave_out(where, broken, counts)
                continue
            yield JsonRecord(value, where, byte_count(line))


def read_json_value(file: Path, counts: Counts) -> Any:
    """The one value that a file is.

    Args:
        file: UTF-8.
        counts: gets the bytes that are not.

    Raises:
        DataError: the file cannot be read, or is no JSON.
    """
    with open_text(file) as handle:
        return _parsed(file, "".join(valid(handle, counts)), "one JSON value")


def leave_out(where: str, reason: str, counts: Counts) -> None:
    """Counts a record that is left out; the first for each reason is named in the log."""
    if not counts[reason]:
        log.warning("%s: %s (only the first is named)", where, reason)
    counts[reason] += 1


def _array(file: Path, text: str) -> Iterator[JsonRecord]:
    values = _parsed(file, text, _RECORDS)
    size = byte_count(text) // max(len(values), 1)
    for number, value in enumerate(values, 1):
        yield JsonRecord(value, f"{file} record {number}", size)


def _parsed(file: Path, text: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{file} line {getattr(error, 'lineno', 1)}"
        raise _broken(where, error, wanted) from error


def _broken(where: str, error: Exception, wanted: str = _RECORDS) -> DataError:
    reason = getattr(error, "msg", str(error))
    return DataError(f"{where}: is no JSON ({reason}); the file must be {wanted}; mend it")
