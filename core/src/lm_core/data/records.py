"""What every source of records has, so that batches, checks and resuming know only this."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Self

import numpy as np

from lm_core.errors import DataError


class Records:
    """Records by number; subclasses give `stream`, `row_length` and `locate`.

    Attributes:
        path: what was asked for.
        columns: the columns that are read.
        single: those of them that hold one value a record, and not one for each id.
    """

    path: Path
    columns: tuple[str, ...]
    single: Collection[str] = ()
    _count: int

    @property
    def row_length(self) -> int:
        """Length L of every record."""
        raise NotImplementedError

    def stream(self, rows: np.ndarray | Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Records by number, in the order asked for, each column a vector of int32 [L]."""
        raise NotImplementedError

    def locate(self, row: int) -> str:
        """Where a record is, for messages."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> Self:
        """The same data set without the records after the first `count`."""
        found = copy(self)
        found._count = min(count, len(self))
        return found

    def numbers(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """`rows` as an array. Raises IndexError if there are no such records."""
        found = np.asarray(rows, np.int64)
        if found.size and not 0 <= found.min() <= found.max() < len(self):
            raise IndexError(f"{self.path}: records are numbered 0 to {len(self) - 1}")
        return found

    def values(self, column: str) -> np.ndarray:
        """All values of a column with one value a record, [n]."""
        rows = self.stream(np.arange(len(self)))
        return np.fromiter((row[column][0] for row in rows), np.int32, len(self))

    def read(self, rows: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
        """Records by number as arrays [n, L] of int32.

        Raises:
            DataError: a record is shorter or longer than others, or its columns are.
        """
        return self.stack(list(self.stream(rows)), rows)

    def stack(
        self, records: Sequence[Mapping[str, np.ndarray]], rows: np.ndarray | Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Arrays [n, L] of records; `rows` are their numbers, for messages."""
        expected = self.row_length if records else 0
        for row, record in zip(rows, records, strict=True):
            for name, value in record.items():
                wanted = 1 if name in self.single else expected
                if value.shape != (wanted,):
                    raise DataError(
                        f"{self.locate(int(row))}: {name} holds {value.size} values, must hold "
                        f"{wanted}{'' if name in self.single else ' as the first record'}; "
                        f"write the file with one max_length"
                    )
        empty = np.zeros((0, self.row_length), np.int32) if not records else None
        return {
            name: np.stack([record[name] for record in records]) if empty is None else empty
            for name in self.columns
        }

    def check_length(self, seq_length: int, exact: bool = True) -> None:
        """Compares the records with the model: training needs seq_length + 1 ids in each.

        Args:
            seq_length: positions of the model.
            exact: False accepts shorter records.

        Raises:
            DataError: they do not fit.
        """
        length = self.row_length
        if length == seq_length + 1 or (length <= seq_length and not exact):
            return
        raise DataError(
            f"{self.path}: records hold {length} ids; seq_length {seq_length} needs "
            f"{seq_length + 1}{'' if exact else ' or fewer'} (the inputs and the last target); run "
            f"preprocess with --max_length {seq_length + 1} (where it has --seq_length: "
            f"{seq_length}) or set model.model_config.seq_length={length - 1}"
        )

    def check_ids(self, ids: np.ndarray, rows: np.ndarray, vocab_size: int) -> None:
        """Raises DataError if ids [n, L] of the records `rows` [n] are not below `vocab_size`."""
        if ids.size and (ids.max() >= vocab_size or ids.min() < 0):
            which = int(np.argmax(((ids >= vocab_size) | (ids < 0)).any(axis=1)))
            wrong = next(int(value) for value in ids[which] if not 0 <= value < vocab_size)
            raise DataError(
                f"{self.locate(int(rows[which]))}: holds the id {wrong}; the model's vocab_size is "
                f"{vocab_size}; use records that were written with the tokenizer of this model"
            )
