"""Text of many files for pre-training: documents in one row of ids, cut into records.

Three kinds of files (`--dataset_type`): plain text in which blank lines separate paragraphs
(openwebtext), WikiText (wiki), and JSON lines with a `text` each (lambada). A token stands behind
each document. What remains at the end of all files is left out and counted.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.data.jsonfile import leave_out, read_json_records
from lm_core.data.packing import SEGMENTS, add_packing
from lm_core.data.paragraphs import texts
from lm_core.data.preprocess import Counts, Item, Preprocessor, cut
from lm_core.data.text import (
    BEGIN,
    END,
    Encoded,
    Marked,
    encode_marked,
    marked_items,
    only_blocks,
    open_text,
    valid,
)
from lm_core.data.wikitext import passages
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

# Characters of an item: 0.1 s of work for words of Chinese, so that processes end together.
_ITEM = 1 << 15
_KINDS = {
    "openwebtext": (".txt", ".md"),
    "wiki": (".tokens", ".raw", ".txt"),
    "lambada": (".json", ".jsonl"),
}
_SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in _KINDS.values() for suffix in suffixes))


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of text for pre-training."""
    parser.add_argument(
        "--dataset_type",
        choices=tuple(_KINDS),
        default="openwebtext",
        help="plain text with blank lines between documents (openwebtext, the default), WikiText "
        "(wiki), or JSON lines with a text each (lambada)",
    )
    parser.add_argument(
        "--seq_length",
        type=int,
        default=1025,
        metavar="N",
        help="ids of a record: the model's seq_length plus 1 (default: 1025)",
    )
    parser.add_argument(
        "--eot",
        type=int,
        metavar="ID",
        help="the token behind each document (default: the one that ends a text)",
    )
    parser.add_argument(
        "--data_column_name",
        choices=("input_ids",),
        default="input_ids",
        help="the column of the records (input_ids)",
    )
    add_packing(parser, "documents")


def columns(args: Namespace) -> Sequence[str]:
    """The columns of the records. Raises DataError if a flag is impossible."""
    if args.seq_length < 2:
        raise DataError(f"seq_length: {args.seq_length} leaves no id to predict; use at least 2")
    return ("input_ids", SEGMENTS) if args.packing else ("input_ids",)


def end_of_document(args: Namespace, tokenizer: Tokenizer) -> int:
    """The id behind each document.

    Raises:
        DataError: the vocabulary does not have it.
    """
    last = tokenizer.eos_token_id
    if args.eot is None:
        if last is None:
            raise DataError("tokenizer: has no eos_token to separate documents; give --eot ID")
        return last
    if not 0 <= args.eot < len(tokenizer):
        known = "" if last is None else f", such as {last} ({tokenizer.eos_token})"
        raise DataError(
            f"eot: {args.eot} is outside the vocabulary of {len(tokenizer)} tokens; must be 0 to "
            f"{len(tokenizer) - 1}; use the id of a special token{known}"
        )
    return args.eot


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of pieces of documents, and of marks where one begins or ends."""
    end_of_document(args, tokenizer)
    return marked_items(_marked(files, args.dataset_type, tokenizer, counts), _ITEM)


def _marked(
    files: Sequence[Path], kind: str, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Marked]:
    for file in files:
        counts["files"] += 1
        for document in _documents(file, kind, counts):
            counts["documents"] += 1
            yield "", BEGIN
            yield from ((piece, "") for piece in cut(document, tokenizer, _ITEM))
            yield "", END


def _documents(file: Path, kind: str, counts: Counts) -> Iterator[Iterable[str]]:
    """The parts of each document of a file; those of one are read before the next one is."""
    if kind == "lambada":
        yield from _of_json(file, counts)
        return
    with open_text(file) as handle:
        lines = valid(handle, counts)
        if kind == "wiki":
            for passage in passages(lines, counts, blank_ends=True):
                yield texts([passage])
            return
        for blank, group in groupby(lines, lambda line: not line.strip()):
            if not blank:
                yield _joined(group)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """A paragraph without the end of its last line, line by line."""
    for number, line in enumerate(lines):
        yield ("\n" if number else "") + line.rstrip("\n")


def _of_json(file: Path, counts: Counts) -> Iterator[list[str]]:
    for record in read_json_records(file, counts, broken="rows left out, no JSON"):
        text = record.value.get("text") if isinstance(record.value, dict) else None
        if isinstance(text, str) and text.strip():
            yield [text]
        else:
            leave_out(record.where, "rows left out, no text 'text'", counts)


def encode(tokenizer: Tokenizer, args: Namespace, work: Sequence[Marked]) -> Encoded:
    """Encodes pieces of documents."""
    return encode_marked(tokenizer, work, end_of_document(args, tokenizer))


def records(
    encoded: Iterable[Encoded], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of `seq_length` ids."""
    return only_blocks(encoded, args.seq_length, counts)


PRETRAIN = Preprocessor(
    help="text in many files (plain, WikiText or JSON lines): documents in a row, cut into records",
    suffixes=_SUFFIXES,
    add_arguments=add_arguments,
    columns=columns,
    read=read,
    encode=encode,
    records=records,
    vocabularies=("jieba",),
)
