"""Labelled texts to records of text classification: CoLA, SST-2, AG News, IMDB.

A record is one text: `input_ids` and `attention_mask` [max_length], filled up on the right, and
`labels` [1], its class counted from 0. A first line that is a header is found by its words, so that
a file without one does not lose its first text. What cannot be read is an error with its line;
nothing is left out but blank lines, which are counted.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_core.config.flags import str2bool
from lm_core.data.preprocess import Counts, Item, Preprocessor, gathered
from lm_core.data.tables import TableRow, read_table
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

COLUMNS = ("input_ids", "attention_mask", "labels")
_LABEL_WORDS = ("label", "labels", "class", "class_index", "sentiment")
_TEXT_WORDS = ("sentence", "text", "review")
_TITLE_WORDS = ("title", "description")
_OTHER_WORDS = ("index", "idx", "id", "is_valid", "source", "mark", "")


@dataclass(frozen=True)
class LabelledTexts:
    """One published data set.

    Attributes:
        classes: names, from class 0 on.
        layouts: how files without a header look: the names of their columns, by how many there are.
        words: other names of classes, in lower case.
        first: the number that the first class has in the files.
    """

    classes: tuple[str, ...]
    layouts: Mapping[int, tuple[str, ...]]
    words: Mapping[str, int]
    first: int = 0


_SENTIMENT = ("negative", "positive")
_SHORT = {"neg": 0, "pos": 1}
DATASETS = {
    "cola": LabelledTexts(
        ("unacceptable", "acceptable"), {4: ("source", "label", "mark", "sentence")}, {}
    ),
    "sst_2": LabelledTexts(_SENTIMENT, {2: ("sentence", "label")}, _SHORT),
    "ag_news": LabelledTexts(
        ("World", "Sports", "Business", "Sci/Tech"),
        {3: ("label", "title", "description")},
        {"sci_tech": 3},
        first=1,
    ),
    "imdb": LabelledTexts(
        _SENTIMENT, {2: ("review", "sentiment"), 3: ("label", "text", "is_valid")}, _SHORT
    ),
}


class Encoded(NamedTuple):
    """Ids of a text, and its class."""

    ids: list[int]
    label: int


class Layout(NamedTuple):
    """Where in a row the label is, and the parts of the text."""

    width: int
    label: int
    texts: tuple[int, ...]


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of labelled texts."""
    parser.add_argument(
        "--dataset_name",
        type=dataset_name,
        required=True,
        metavar="NAME",
        help=f"which data set: {', '.join(DATASETS)}",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=1024,
        metavar="N",
        help="ids of a record, at most the model's seq_length; the rest is cut off (default: 1024)",
    )
    parser.add_argument(
        "--header",
        type=str2bool,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="whether the first line names the columns (default: it does if it holds their names)",
    )
    parser.add_argument(
        "--first_label",
        type=int,
        metavar="N",
        help="number of the first class in the file (default: 1 for ag_news, 0 for the others)",
    )


def dataset_name(text: str) -> str:
    """A key of DATASETS, however it is spelt: SST-2, sst2, AG-News."""
    plain = re.sub(r"\W|_", "", text.lower())
    for name in DATASETS:
        if name.replace("_", "") == plain:
            return name
    raise ArgumentTypeError(f"{text!r} is no data set; use one of {', '.join(DATASETS)}")


def check_flags(args: Namespace) -> Sequence[str]:
    """The columns. Raises DataError if a flag is impossible."""
    if args.max_length < 1:
        raise DataError(f"max_length: {args.max_length} holds no token; use at least 1")
    return COLUMNS


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of texts with their classes."""
    data = DATASETS[args.dataset_name]
    for number, name in enumerate(data.classes):
        counts[_class_count(number, name)] = 0
    examples = (one for file in files for one in _examples(file, data, args, counts))
    return gathered(_counted(examples, data, counts))


def _counted(
    examples: Iterable[tuple[str, int, int]], data: LabelledTexts, counts: Counts
) -> Iterator[tuple[tuple[str, int], int, int]]:
    for text, label, size in examples:
        counts[_class_count(label, data.classes[label])] += 1
        yield (text, label), len(text), size


def _class_count(number: int, name: str) -> str:
    return f"class {number} ({name})"


def _examples(
    file: Path, data: LabelledTexts, args: Namespace, counts: Counts
) -> Iterator[tuple[str, int, int]]:
    """Text, class and bytes of each row of a file."""
    first = data.first if args.first_label is None else args.first_label
    layout = None
    for row in read_table(file, counts):
        if layout is None:
            names = _normalised(row.cells)
            header = _is_header(names) if args.header is None else args.header
            layout = _layout(file, row, names if header else None, data, args)
            if header:
                counts["header lines"] += 1
                continue
        where = f"{file} line {row.line}"
        if len(row.cells) != layout.width:
            raise DataError(
                f"{where}: has {len(row.cells)} columns; must have {layout.width} as the first "
                f"line; mend the line"
            )
        label = _label(where, row.cells[layout.label], data, first)
        text = ". ".join(filter(None, (row.cells[k].strip() for k in layout.texts)))
        if not text:
            counts["empty texts, written as the end-of-text token"] += 1
        yield text, label, row.size


def _normalised(cells: Sequence[str]) -> list[str]:
    return [re.sub(r"[\s_-]+", "_", cell.strip().lower()) for cell in cells]


def _is_header(names: Sequence[str]) -> bool:
    known = {*_LABEL_WORDS, *_TEXT_WORDS, *_TITLE_WORDS, *_OTHER_WORDS}
    return set(names) <= known and set(names) != {""}


def _layout(
    file: Path,
    row: TableRow,
    names: Sequence[str] | None,
    data: LabelledTexts,
    args: Namespace,
) -> Layout:
    """The layout that the names of a header say, or that the number of columns means."""
    if names is None:
        names = data.layouts.get(len(row.cells))
    elif not _is_header(names):
        # A header in words of its own, of which --header True says that it is one.
        names = data.layouts.get(len(names), names)
    expected = " or ".join(", ".join(known) for known in data.layouts.values())
    if names is None:
        raise DataError(
            f"{file} line {row.line}: has {len(row.cells)} columns; {args.dataset_name} has "
            f"{expected}; give a file of that data set, or one with a header"
        )
    found = [at for at, name in enumerate(names) if name in _LABEL_WORDS]
    texts = [at for at, name in enumerate(names) if name in _TEXT_WORDS]
    texts = texts or [at for at, name in enumerate(names) if name in _TITLE_WORDS]
    if not found:
        raise DataError(
            f"{file}: has no labels, its columns are {', '.join(names)}; must have a column label "
            f"(test files are published without); give a file for training or validation"
        )
    if not texts or len(found) > 1:
        raise DataError(
            f"{file}: has the columns {', '.join(names)}; must have one label and one of "
            f"{', '.join((*_TEXT_WORDS, *_TITLE_WORDS))}; rename the columns"
        )
    return Layout(len(names), found[0], tuple(texts))


def _label(where: str, cell: str, data: LabelledTexts, first: int) -> int:
    """The class that a cell means, by number or name, counted from 0."""
    text = cell.strip()
    if re.fullmatch(r"\d+", text) and 0 <= int(text) - first < len(data.classes):
        return int(text) - first
    names = {name.lower(): number for number, name in enumerate(data.classes)} | dict(data.words)
    if text.lower() in names:
        return names[text.lower()]
    numbers = ", ".join(str(first + number) for number in range(len(data.classes)))
    raise DataError(
        f"{where}: the label is {text[:40]!r}; must be {numbers} or {', '.join(data.classes)}; "
        f"mend the line, or see --header and --first_label"
    )


def encode(tokenizer: Tokenizer, args: Namespace, work: list[tuple[str, int]]) -> list[Encoded]:
    """Encodes some texts whole."""
    return [Encoded(class_ids(tokenizer, text), label) for text, label in work]


def class_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text; an empty one is its end alone, so that there is a token to read.

    Raises:
        DataError: it is empty and the tokenizer has no token that ends a text.
    """
    ids = tokenizer.encode(text)
    if not ids and tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no eos_token to stand for an empty text; name one")
    return ids or [tokenizer.eos_token_id]  # type: ignore[list-item]


def records(
    encoded: Iterator[list[Encoded]], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows, and counts of what was cut off; a text that is too long keeps its beginning."""
    length, pad = args.max_length, tokenizer.pad_token_id or 0
    longest = "tokens of the longest text"
    for item in encoded:
        for ids, label in item:
            counts["records"] += 1
            counts["tokens"] += len(ids)
            counts[longest] = max(counts[longest], len(ids))
            if len(ids) > length:
                counts["texts cut to max_length"] += 1
                counts["tokens cut off"] += len(ids) - length
            kept = ids[:length]
            row = np.full(length, pad, np.int32)
            row[: len(kept)] = kept
            yield {
                "input_ids": row,
                "attention_mask": (np.arange(length) < len(kept)).astype(np.int32),
                "labels": np.array([label], np.int32),
            }


TXTCLS = Preprocessor(
    help="labelled texts of CoLA, SST-2, AG News or IMDB, one a record, for text classification",
    suffixes=(".tsv", ".csv"),
    add_arguments=add_arguments,
    columns=check_flags,
    read=read,
    encode=encode,
    records=records,
)
