"""Records to batches, in an order given by (seed, epoch), from a position of two numbers.

A batch is global: it is the same for every number of data-parallel ranks, and each rank reads its
slice of it. MindSpore reads the rows in a thread of its own, ahead of the training step, given
the row numbers in order; so starting in the middle of an epoch costs the same as at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.data.mindrecord import find_records, iterate, open_records
from lm_core.data.order import shuffled
from lm_core.data.packing import SEGMENTS, Ends, document_numbers
from lm_core.data.records import Records
from lm_core.errors import DataError

COLUMNS = ("input_ids", "attention_mask", "labels", SEGMENTS)

# Row numbers handed to MindSpore at once: it takes 0.05 s to start on these, and 0.8 s and 100 MB
# on a million.
_WINDOW = 1 << 16

_MEND = "set it back"
_MENDS = {
    "batch_size": "that is runner_config.batch_size x gradient_accumulation_steps x data_parallel "
    "x (with pipeline stages) micro_batch_num, which together must give what they gave; change "
    "runner_config.batch_size"
}
"""What to do where it is not simply one setting."""


class RecordDataset(Records):
    """The records of MindRecord files, numbered through all of them.

    Attributes:
        files: the files, in order.
        file_rows: number of records in each file.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str] | None = None,
        single: Collection[str] = (),
        ends: Ends | None = None,
    ) -> None:
        """Opens the files and reads no record.

        Args:
            path: a file, a folder of files, or the common name of splits; see `find_records`.
            columns: names; None: those of COLUMNS that are there. `segment_ids` are read wherever
                they are: without them the ids of a record mean something else.
            single: columns with one value a record (the class of a text).
            ends: keep documents that stand in one record apart by the token that ends each:
                `segment_ids` are made of that, unless the records have them.

        Raises:
            DataError: there are no files, no records, or no such column.
        """
        self.path, self.single = Path(path), frozenset(single)
        self.files = find_records(path)
        opened = [open_records([file]) for file in self.files]
        self.file_rows = [int(records.get_dataset_size()) for records in opened]
        present = [set(records.get_col_names()) for records in opened]
        if columns is None:
            columns = [name for name in COLUMNS if name in present[0]]
        if SEGMENTS not in columns and any(SEGMENTS in names for names in present):
            columns = (*columns, SEGMENTS)
        self.columns = stored = tuple(columns)
        self.ends = None if SEGMENTS in stored else ends
        if self.ends is not None:
            self.columns = (*stored, SEGMENTS)
        for file, names in zip(self.files, present, strict=True):
            missing = [name for name in stored if name not in names]
            if missing or not stored:
                raise DataError(
                    f"{file}: has no column {', '.join(missing or COLUMNS)}; it has "
                    f"{', '.join(sorted(names))}; set dataset input_columns to some of these"
                )
        self._count = sum(self.file_rows)
        if not len(self):
            raise DataError(f"{self.path}: holds no records; write the file again")

    @cached_property
    def row_length(self) -> int:
        """Length L of the first record of each file, which must be the same.

        Raises:
            DataError: the files differ, or the columns of a record do.
        """
        starts = np.cumsum([0, *self.file_rows[:-1]])
        others = (name for name in self.columns if name not in self.single)
        column = next(others, self.columns[0])
        lengths = [len(row[column]) for row in self.stream(starts)]
        for file, length in zip(self.files, lengths, strict=True):
            if length != lengths[0]:
                raise DataError(
                    f"{file}: records hold {length} ids, but {lengths[0]} in {self.files[0]}; "
                    f"use files that were written with one max_length"
                )
        return lengths[0]

    def stream(self, rows: np.ndarray | Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Records by number, in the order asked for, each column a vector of int32 [L]."""
        rows = self.numbers(rows)
        window = min(_WINDOW, len(self))
        made = self.ends if SEGMENTS in self.columns else None
        stored = [name for name in self.columns if made is None or name != SEGMENTS]
        for start in range(0, len(rows), window):
            part = rows[start : start + window].tolist()
            for row in iterate(open_records(self.files, stored, part), self.files):
                found = {name: row[name].astype(np.int32, copy=False) for name in stored}
                if made is not None:
                    found[SEGMENTS] = document_numbers(found["input_ids"], *made)
                yield found

    def values(self, column: str) -> np.ndarray:
        """All values of a column with one value a record, [n]; no other column is read."""
        alone = copy(self)
        alone.columns = (column,)
        rows = alone.stream(np.arange(len(self)))
        return np.fromiter((row[column][0] for row in rows), np.int32, len(self))

    def locate(self, row: int) -> str:
        """Where a record is: "FILE record 17", counted from 0 within the file."""
        for file, count in zip(self.files, self.file_rows, strict=True):
            if row < count:
                return f"{file} record {row}"
            row -= count
        raise IndexError(f"{self.path}: has no record {row + len(self)}")


class BatchIterator:
    """Batches of a data set, epoch after epoch, from a position that can be saved and set.

    `for batch in batches` gives what is left of the present epoch; a second loop gives the next
    epoch. After a batch has been given, `epoch` and `step` stand at the batch after it.

    Attributes:
        epoch: epochs that are complete.
        step: batches of the present epoch that were given.
        steps_per_epoch: batches of an epoch, the same on every rank.
    """

    def __init__(
        self,
        dataset: Records,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_remainder: bool = True,
        dp_rank: int = 0,
        dp_size: int = 1,
        vocab_size: int | None = None,
        check: Callable[[Mapping[str, np.ndarray], np.ndarray], None] | None = None,
    ) -> None:
        """Reads no record.

        Args:
            dataset: the records.
            batch_size: records of a global batch, over all data-parallel ranks.
            seed: with the epoch it decides the order.
            shuffle: False keeps the order of the files in every epoch.
            drop_remainder: leave out the last records of an epoch that do not fill a batch. False
                gives them as a smaller batch, shared out as evenly as can be; a rank may get none.
            dp_rank: which slice of each batch is read.
            dp_size: number of slices.
            vocab_size: ids of every batch are compared with it; None: they are not.
            check: called with every batch and the numbers of its records; raises DataError.

        Raises:
            DataError: the sizes do not fit each other.
        """
        if batch_size < 1 or batch_size % dp_size:
            raise DataError(
                f"batch_size: {batch_size} records cannot be shared by {dp_size} data-parallel "
                f"ranks; use a multiple of {dp_size}"
            )
        if drop_remainder and batch_size > len(dataset):
            raise DataError(
                f"batch_size: {batch_size} is more than the {len(dataset)} records of "
                f"{dataset.path}; use a smaller batch, more data or drop_remainder: False"
            )
        assert 0 <= dp_rank < dp_size, f"rank {dp_rank} of {dp_size}"
        self.dataset, self.batch_size = dataset, batch_size
        self.vocab_size, self.check = vocab_size, check
        self.seed, self.shuffle, self.drop_remainder = seed, shuffle, drop_remainder
        self.dp_rank, self.dp_size = dp_rank, dp_size
        full, rest = divmod(len(dataset), batch_size)
        self.steps_per_epoch = full + bool(rest and not drop_remainder)
        self.epoch = self.step = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The rest of this epoch: int32 arrays [B / dp_size, L] by column."""
        epoch = self.epoch
        for step, rows, batch in self._batches(epoch, self.step):
            if self.vocab_size is not None and "input_ids" in batch:
                self.dataset.check_ids(batch["input_ids"], rows, self.vocab_size)
            if self.check is not None:
                self.check(batch, rows)
            last = step + 1 == self.steps_per_epoch
            self.epoch, self.step = (epoch + 1, 0) if last else (epoch, step + 1)
            yield batch

    def _batches(
        self, epoch: int, first: int
    ) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """Steps, record numbers and batches; many batches share one reader."""
        at_once = max(1, min(_WINDOW, len(self.dataset)) * self.dp_size // self.batch_size)
        for start in range(first, self.steps_per_epoch, at_once):
            steps = range(start, min(start + at_once, self.steps_per_epoch))
            positions = [self._positions(step) for step in steps]
            numbers = self._records(epoch, np.concatenate(positions))
            ends = np.cumsum([len(part) for part in positions])[:-1]
            records = self.dataset.stream(numbers)
            for step, rows in zip(steps, np.split(numbers, ends), strict=True):
                yield step, rows, self.dataset.stack(list(islice(records, len(rows))), rows)

    def record_ids(self, epoch: int, step: int) -> np.ndarray:
        """Numbers [B / dp_size] of the records of a batch on this rank; nothing is read."""
        return self._records(epoch, self._positions(step))

    def _positions(self, step: int) -> np.ndarray:
        """This rank's positions in the epoch of one batch."""
        start = step * self.batch_size
        count = min(self.batch_size, len(self.dataset) - start)
        begin = start + self.dp_rank * count // self.dp_size
        end = start + (self.dp_rank + 1) * count // self.dp_size
        return np.arange(begin, end)

    def _records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        if not self.shuffle:
            return positions
        return shuffled(len(self.dataset), self.seed, epoch, positions)

    def state(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean the same."""
        return {"epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position; nothing is read. The number of ranks may differ.

        Raises:
            DataError: the position is one of other data or of another order.
        """
        identity = self._identity()
        changed = [name for name, value in identity.items() if state.get(name) != value]
        if changed:
            raise DataError(
                *(
                    f"resume: {name} was {state.get(name)}, now it is {identity[name]}; the "
                    f"position in the data means something else now; {_MENDS.get(name, _MEND)}"
                    for name in changed
                )
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "records": len(self.dataset),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_remainder": self.drop_remainder,
        }
