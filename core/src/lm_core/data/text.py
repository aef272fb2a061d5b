"""Text to language-modelling records: WikiText files, and plain text files.

A corpus is one row of ids, cut into blocks of `max_length` that do not overlap. The last block is
filled up and masked (`--remainder pad`), or left out and counted (`--remainder drop`).
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from lm_core.data.packing import IGNORED, SEGMENTS, add_packing
from lm_core.data.preprocess import Counts, Item, Preprocessor, cut
from lm_core.data.wikitext import join, passages
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

_COLUMNS = ("input_ids", "attention_mask", "labels")
# Characters of an item: 0.05 s of work, so that many processes end at about the same time.
_ITEM = 1 << 17
_READ = 1 << 16
BEGIN, END = "begin", "end"
Marked = tuple[str, str]
"""A piece of a document and no mark, or no text and BEGIN or END."""
_INVALID = "bytes that are not UTF-8, read as U+FFFD"


class Encoded(NamedTuple):
    """Ids [n] int32 of an item, and the characters that they stand for."""

    ids: np.ndarray
    characters: int
    ends: Sequence[int] = ()
    """Where in the ids a document ends: after so many of them."""


def add_block_arguments(parser: ArgumentParser) -> None:
    """Flags of data sets that are cut into blocks."""
    parser.add_argument(
        "--max_length",
        type=int,
        default=1025,
        metavar="N",
        help="ids of a record: the model's seq_length plus 1 (default: 1025)",
    )
    parser.add_argument(
        "--remainder",
        choices=("pad", "drop"),
        default="pad",
        help="the last block, if short: fill it with attention_mask 0 (default), or leave it out",
    )
    parser.add_argument(
        "--data_columns",
        nargs="+",
        choices=_COLUMNS,
        default=_COLUMNS[:2],
        metavar="COLUMN",
        help=f"columns to write, of {', '.join(_COLUMNS)} (default: the first two)",
    )


def block_columns(args: Namespace) -> Sequence[str]:
    """The columns asked for. Raises DataError if a flag is impossible."""
    if args.max_length < 2:
        raise DataError(f"max_length: {args.max_length} leaves no id to predict; use at least 2")
    if "input_ids" not in args.data_columns:
        raise DataError("data_columns: must hold input_ids; add it")
    columns = tuple(name for name in _COLUMNS if name in args.data_columns)
    return (*columns, SEGMENTS) if getattr(args, "packing", False) else columns


def blocks(
    pieces: Iterable[Encoded], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of `max_length` ids from the pieces of a corpus."""
    pad = (tokenizer.pad_token_id or 0) if args.remainder == "pad" else None
    return cut_blocks(pieces, args.max_length, pad, counts)


def cut_blocks(
    pieces: Iterable[Encoded], length: int, pad: int | None, counts: Counts
) -> Iterator[Row]:
    """Rows of `length` ids; every token is accounted for.

    Args:
        pieces: of a corpus.
        length: ids of a row.
        pad: fills up the last row; None: it is left out.
        counts: gets what was written and left out.
    """
    # The ids, and the number of the document that each belongs to.
    rest = np.zeros((2, 0), np.int32)
    documents = 0
    for piece in pieces:
        counts["characters"] += piece.characters
        counts["tokens"] += len(piece.ids)
        number = np.searchsorted(piece.ends, np.arange(len(piece.ids)), side="right") + documents
        documents += len(piece.ends)
        rest = np.concatenate([rest, np.stack([piece.ids, number.astype(np.int32)])], axis=1)
        full = rest.shape[1] // length * length
        for start in range(0, full, length):
            counts["records"] += 1
            yield _row(rest[:, start : start + length], length)
        rest = rest[:, full:]
    left = rest.shape[1]
    # One id alone has nothing to predict: a record of it would be all padding to the loss.
    if left > 1 and pad is not None:
        counts["records"] += 1
        counts["tokens in the last record, the others are padding"] = left
        fill = np.array([[pad], [-1]], np.int32).repeat(length - left, axis=1)
        yield _row(np.concatenate([rest, fill], axis=1), left)
    else:
        counts["tokens left out at the end"] = left


def only_blocks(pieces: Iterable[Encoded], length: int, counts: Counts) -> Iterator[Row]:
    """Full rows of `length` ids, the flag `--seq_length`. Raises DataError if there is none."""
    yield from cut_blocks(pieces, length, None, counts)
    if not counts["records"]:
        raise DataError(
            f"seq_length: the text has {counts['tokens']:,} tokens, a record needs {length:,}; "
            f"give more text, or a smaller --seq_length"
        )


def _row(both: np.ndarray, real: int) -> Row:
    """A record of which the first `real` are text; both: ids, and numbers of documents."""
    ids, documents = both
    mask = (np.arange(len(ids)) < real).astype(np.int32)
    labels = np.where(mask, ids, IGNORED).astype(np.int32)
    segments = np.where(mask, documents - documents[0] + 1, 0).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, SEGMENTS: segments}


def read_wikitext(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of whole passages, uncleaned, and whether a line break goes before the first."""
    separable = tokenizer.cuts_at("a", "\n")
    waiting: list[list[str]] = []
    characters, first = 0, True
    for file in files:
        with open_text(file) as lines:
            for passage in passages(valid(lines, counts), counts):
                counts["passages"] += 1
                waiting.append(passage)
                characters += sum(map(len, passage))
                if characters >= _ITEM and separable:
                    yield _wikitext_item(waiting, first)
                    waiting, characters, first = [], 0, False
    if waiting:
        yield _wikitext_item(waiting, first)


def _wikitext_item(waiting: list[list[str]], first: bool) -> Item:
    return Item((waiting, first), sum(byte_count(line) for passage in waiting for line in passage))


def encode_wikitext(
    tokenizer: Tokenizer, args: Namespace, work: tuple[list[list[str]], bool]
) -> Encoded:
    """Cleans and encodes some passages. Passages begin and end with text, so an item may too."""
    waiting, first = work
    text = "\n".join(map(join, waiting))
    text = text if first else f"\n{text}"
    return Encoded(tokenizer.encode_piece(text), len(text))


def read_text(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of pieces of documents, and of marks where one begins or ends."""
    return marked_items(_marked(files, tokenizer, counts), _ITEM)


def _marked(files: Sequence[Path], tokenizer: Tokenizer, counts: Counts) -> Iterator[Marked]:
    for file in files:
        counts["files"] += 1
        empty = True
        for piece in cut(valid(_parts(file), counts), tokenizer, _ITEM):
            if empty:
                yield "", BEGIN
            yield piece, ""
            empty = False
        if empty:
            counts["empty files left out"] += 1
        else:
            yield "", END


def marked_items(marked: Iterable[Marked], size: int) -> Iterator[Item]:
    """Work of `encode_marked`, of at least `size` characters: pieces and marks in a row."""
    waiting: list[Marked] = []
    characters = 0
    for text, mark in marked:
        waiting.append((text, mark))
        characters += len(text)
        if characters >= size:
            yield _marked_item(waiting)
            waiting, characters = [], 0
    if waiting:
        yield _marked_item(waiting)


def _marked_item(waiting: list[Marked]) -> Item:
    return Item(waiting, sum(byte_count(text) for text, _ in waiting))


def encode_text(tokenizer: Tokenizer, args: Namespace, work: Sequence[Marked]) -> Encoded:
    """Encodes pieces of documents; puts the end-of-text token after each document.

    Before it come the tokens that the tokenizer has before every text.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no eos_token to separate documents; name one")
    return encode_marked(tokenizer, work, tokenizer.eos_token_id)


def encode_marked(tokenizer: Tokenizer, work: Sequence[Marked], end: int) -> Encoded:
    """Encodes pieces of documents.

    Args:
        tokenizer: encodes; `prefix_ids` stand before each document.
        work: the pieces, with a mark where a document begins (BEGIN) and ends (END).
        end: the id after each document.
    """
    marks = {BEGIN: np.array(tokenizer.prefix_ids, np.int32), END: np.array([end], np.int32)}
    ids = [marks[mark] if mark else tokenizer.encode_piece(text) for text, mark in work]
    after = np.cumsum([len(piece) for piece in ids])
    ends = [int(at) for at, (_, mark) in zip(after, work, strict=True) if mark == END]
    return Encoded(np.concatenate(ids), sum(len(text) for text, _ in work), ends)


def add_text_arguments(parser: ArgumentParser) -> None:
    """Flags of plain text."""
    add_block_arguments(parser)
    add_packing(parser, "documents")


def _parts(file: Path) -> Iterator[str]:
    with open_text(file) as handle:
        while part := handle.read(_READ):
            yield part


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """A text file whose invalid bytes come as lone surrogates, which tokenizers replace.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    except OSError as error:
        raise DataError(
            f"input_file: {file} cannot be read: {error.strerror}; name one that can"
        ) from error


def valid(parts: Iterable[str], counts: Counts) -> Iterator[str]:
    """Passes text on and counts the bytes in it that are not UTF-8."""
    for part in parts:
        if not part.isascii() and (invalid := len(re.findall("[\udc80-\udcff]", part))):
            counts[_INVALID] += invalid
        yield part


def byte_count(text: str) -> int:
    """Bytes of a text in its file."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


WIKITEXT2 = Preprocessor(
    help="WikiText files (.tokens or .raw): headings left out, spaces restored, cut into blocks",
    suffixes=(".tokens", ".raw"),
    add_arguments=add_block_arguments,
    columns=block_columns,
    read=read_wikitext,
    encode=encode_wikitext,
    records=blocks,
)

TEXT = Preprocessor(
    help="plain text: every file is a document, documents end with the end-of-text token",
    suffixes=(".txt", ".md", ".py", ".rst"),
    add_arguments=add_text_arguments,
    columns=block_columns,
    read=read_text,
    encode=encode_text,
    records=blocks,
)
