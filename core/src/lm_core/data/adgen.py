"""ADGEN, and other JSON with a question and an answer in each row: records without a file between.

Rows are read when a run starts, and encoded when their turn comes. `preprocess adgen` writes the
same records to a file.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.config.flags import positive, str2bool
from lm_core.data import answers
from lm_core.data.answers import Lengths, Pair
from lm_core.data.jsonfile import leave_out, read_json_records
from lm_core.data.packing import IGNORED, Document
from lm_core.data.preprocess import Counts, Item, Preprocessor, gathered, reasons
from lm_core.data.records import Records
from lm_core.errors import DataError
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

COLUMNS = ("input_ids", "labels")
ORIGIN = ("content", "summary")
"""What ADGEN calls a question and its answer."""


def find_file(place: str | Path, name: str, key: str) -> Path:
    """The file that `place` is, or the one called `name` in that folder.

    Args:
        place: what the run names.
        name: "train.json" or "dev.json".
        key: of the run, for messages.

    Raises:
        DataError: there is none, or it holds records.
    """
    path = Path(place)
    if ".mindrecord" in path.name:
        raise DataError(
            f"{key}.dataset_dir: {path} holds records; ADGenDataLoader reads JSON; set "
            f"{key}.type=MindDataset"
        )
    found = path / name if path.is_dir() else path
    if not found.is_file():
        what = f"holds no {name}" if path.is_dir() else "does not exist"
        raise DataError(
            f"{key}.dataset_dir: {path} {what}; must be a file of JSON lines, or a folder with "
            f"{name}; name one"
        )
    return found


def read_pairs(file: Path, columns: Sequence[str], counts: Counts) -> Iterator[tuple[Pair, int]]:
    """Questions with answers, and the bytes of each row; rows that are none are counted.

    Args:
        file: JSON lines, or one array.
        columns: names of the question and of the answer.
        counts: gets what was left out.

    Raises:
        DataError: it cannot be read.
    """
    for record in read_json_records(file, counts, broken="rows left out, no JSON"):
        missing = _missing(record.value, columns)
        if missing:
            leave_out(record.where, f"rows left out, {missing}", counts)
            continue
        content, answer = (record.value[name] for name in columns)
        yield Pair(content, answer, record.where), record.size


def _missing(value: Any, columns: Sequence[str]) -> str:
    """What is wrong with a row, "" if nothing is."""
    if not isinstance(value, Mapping):
        return "no object"
    for name in columns:
        if not isinstance(value.get(name), str):
            return f"no text {name!r}"
        if not value[name].strip():
            return f"empty {name!r}"
    return ""


class AnswerRecords(Records):
    """Records of the questions and answers of a JSON file, encoded as they are asked for.

    Attributes:
        pairs: the rows.
        lengths: most tokens of prompts and answers.
    """

    columns = COLUMNS

    def __init__(
        self,
        file: Path,
        tokenizer: Tokenizer,
        lengths: Lengths,
        *,
        length: int | None = None,
        origin: Sequence[str] = ORIGIN,
        train_padding: bool = False,
    ) -> None:
        """Reads the file.

        Args:
            file: JSON lines, or one array.
            tokenizer: encodes; it must have `build_prompt`.
            lengths: most tokens of prompts and answers.
            length: ids of a record; None: as many as the longest prompt and answer need.
            origin: names of the question and of the answer.
            train_padding: the padding is trained, too.

        Raises:
            DataError: it cannot be read or has no such rows.
        """
        self.path, self.tokenizer, self.lengths = file, tokenizer, lengths
        self.train_padding = train_padding
        self._length = length or lengths.row
        assert self._length >= lengths.row, "a record holds the longest prompt and answer"
        counts: Counts = Counts()
        self.pairs = [pair for pair, _ in read_pairs(file, origin, counts)]
        self._count = len(self.pairs)
        if not self.pairs:
            raise DataError(
                f"{file}: has no row with {' and '.join(origin)} ({reasons(counts)}); must have "
                f"JSON objects with these texts; name another file, or set origin_columns"
            )
        if counts:
            notes = ", ".join(f"{name}: {number:,}" for name, number in counts.items())
            get_logger(__name__).warning("%s: %d rows are used; %s", file, self._count, notes)

    @property
    def row_length(self) -> int:
        """Length of every record."""
        return self._length

    def stream(self, rows: np.ndarray | Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Records by number; see Records."""
        pad = self.tokenizer.pad_token_id or 0
        for row in self.numbers(rows).tolist():
            found = answers.document(self.tokenizer, self.pairs[row], self.lengths)
            yield dict(answers.filled(found, self._length, pad, self.train_padding))

    def locate(self, row: int) -> str:
        """Where a record is: "FILE line 17"."""
        return self.pairs[row].where


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of questions with answers."""
    parser.add_argument(
        "--max_source_length",
        type=positive,
        default=64,
        metavar="N",
        help="most tokens of a prompt; longer questions lose their end (default: 64)",
    )
    parser.add_argument(
        "--max_target_length",
        type=positive,
        default=128,
        metavar="N",
        help="most tokens of an answer (default: 128)",
    )
    parser.add_argument(
        "--seq_length",
        type=positive,
        metavar="N",
        help="the model's; records hold one id more (default: source + target + 1)",
    )
    parser.add_argument(
        "--origin_columns",
        nargs=2,
        default=ORIGIN,
        metavar=("QUESTION", "ANSWER"),
        help=f"what they are called in the input (default: {' '.join(ORIGIN)})",
    )
    parser.add_argument(
        "--ignore_pad_token_for_loss",
        type=str2bool,
        nargs="?",
        const=True,
        default=True,
        metavar="BOOL",
        help="padding is not trained (default: True)",
    )


def _lengths(args: Namespace) -> Lengths:
    return Lengths(args.max_source_length, args.max_target_length)


def _row_length(args: Namespace) -> int:
    return (args.seq_length or _lengths(args).row) + 1


def check_flags(args: Namespace) -> Sequence[str]:
    """The columns. Raises DataError if a flag is impossible."""
    needed = _lengths(args).row
    if _row_length(args) < needed:
        raise DataError(
            f"seq_length: is {args.seq_length}; must be at least {needed - 1} to hold "
            f"max_source_length {args.max_source_length} + max_target_length "
            f"{args.max_target_length}; raise it or lower one of these"
        )
    return COLUMNS


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of pairs."""
    answers.check_tokenizer(tokenizer, _lengths(args))
    return gathered(
        (pair, len(pair.content) + len(pair.answer), size)
        for file in files
        for pair, size in read_pairs(file, args.origin_columns, counts)
    )


def encode(tokenizer: Tokenizer, args: Namespace, work: Sequence[Pair]) -> list[Document]:
    """Encodes some pairs."""
    return [answers.document(tokenizer, pair, _lengths(args)) for pair in work]


def records(
    encoded: Iterator[list[Document]], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of one pair each, and the counts of them."""
    length, pad = _row_length(args), tokenizer.pad_token_id or 0
    for item in encoded:
        for one in item:
            counts["records"] += 1
            counts["tokens"] += len(one.ids)
            counts["trained tokens"] += int((one.labels != IGNORED).sum())
            yield answers.filled(one, length, pad, not args.ignore_pad_token_for_loss)
    if not counts["records"]:
        raise DataError(
            f"input_file: has no row with {' and '.join(args.origin_columns)} ({reasons(counts)}); "
            f"must have JSON objects with these texts; name another, or --origin_columns"
        )


ADGEN = Preprocessor(
    help="questions and answers (JSON lines), such as ADGEN; the answers are trained",
    suffixes=(".json", ".jsonl"),
    add_arguments=add_arguments,
    columns=check_flags,
    read=read,
    encode=encode,
    records=records,
)
