"""Text tables as rows of cells: `.tsv` split at tabs and nothing else, `.csv` with quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from lm_core.data.preprocess import Counts
from lm_core.data.text import byte_count, open_text, valid
from lm_core.errors import DataError

_LARGEST_CELL = 1 << 27


class TableRow(NamedTuple):
    """Cells of a row, the line on which it ends, and the bytes of it."""

    cells: list[str]
    line: int
    size: int


def read_table(file: Path, counts: Counts) -> Iterator[TableRow]:
    """All rows of a table but blank lines, which are counted.

    A file that does not end in .csv is split at tabs; a quote in it is a character like any other.

    Raises:
        DataError: the file cannot be read, or a quote in it does not close.
    """
    quoted = file.suffix.lower() == ".csv"
    # Lines end where the format says so: a carriage return inside a text is text.
    with open_text(file, newline="" if quoted else "\n") as handle:
        rows = _quoted(file, handle) if quoted else _split(handle)
        for cells, line in rows:
            if not any(cell.strip() for cell in cells):
                counts["blank lines left out"] += 1
                continue
            cells = list(valid(cells, counts))
            yield TableRow(cells, line, sum(byte_count(cell) + 1 for cell in cells))


def _split(handle: TextIO) -> Iterator[tuple[list[str], int]]:
    for number, line in enumerate(handle, 1):
        yield line.rstrip("\r\n").split("\t"), number


def _quoted(file: Path, handle: TextIO) -> Iterator[tuple[list[str], int]]:
    reader = csv.reader(handle, strict=True)
    before = csv.field_size_limit(_LARGEST_CELL)
    start = 1
    try:
        for cells in reader:
            yield cells, reader.line_num
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file} line {start}: is no CSV ({error}); a quote inside a quoted cell must be "
            f'doubled (""), and each must close; mend the line'
        ) from error
    finally:
        csv.field_size_limit(before)
