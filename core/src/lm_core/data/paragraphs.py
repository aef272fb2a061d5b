"""WikiText as Llama's family is trained on it: paragraphs, each a document of its own.

Paragraphs are what blank lines and headings separate; headings are dropped. Each stands between
the tokens that begin and end a text. All in one row are cut into records of `seq_length` + 1 ids;
what remains at the end is left out and counted.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_core.data.packing import SEGMENTS, add_packing, add_seq_length, check_seq_length
from lm_core.data.preprocess import Counts, Item, Preprocessor
from lm_core.data.text import Encoded, byte_count, only_blocks, open_text, valid
from lm_core.data.wikitext import clean, passages
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

# Bytes of an item: 0.05 s of work, so that many processes end at about the same time.
_ITEM = 1 << 17


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of paragraphs."""
    add_seq_length(parser)
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="write the text N times over; the records of each time begin elsewhere (default: 1)",
    )
    add_packing(parser, "paragraphs")


def columns(args: Namespace) -> Sequence[str]:
    """The columns of the records. Raises DataError if a flag is impossible."""
    check_seq_length(args)
    if args.repeat < 1:
        raise DataError(f"repeat: {args.repeat} writes nothing; use at least 1")
    return ("input_ids", SEGMENTS) if args.packing else ("input_ids",)


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of paragraphs, uncleaned."""
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise DataError(
            "tokenizer: has no bos_token or no eos_token; paragraphs stand between both; name them"
        )
    waiting: list[list[str]] = []
    size = 0
    for file in files:
        with open_text(file) as lines:
            for paragraph in passages(valid(lines, counts), counts, blank_ends=True):
                counts["paragraphs"] += 1
                waiting.append(paragraph)
                size += sum(map(byte_count, paragraph))
                if size >= _ITEM:
                    yield Item(waiting, size)
                    waiting, size = [], 0
    if waiting:
        yield Item(waiting, size)


def encode(tokenizer: Tokenizer, args: Namespace, work: Sequence[Sequence[str]]) -> Encoded:
    """Cleans and encodes paragraphs."""
    found = texts(work)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    # WikiText writes `<unk>` for words that it left out: the token of that name, if there is one.
    rows = (tokenizer.encode(text, False, split_special_tokens=False) for text in found)
    ids = [np.array([begin, *row, end], np.int32) for row in rows]
    ends = np.cumsum([len(one) for one in ids]).tolist()
    return Encoded(np.concatenate(ids), sum(map(len, found)), ends)


def texts(work: Sequence[Sequence[str]]) -> list[str]:
    """Paragraphs, cleaned; their lines stay lines."""
    return ["\n".join(clean(f" {line} ").strip() for line in lines).strip() for lines in work]


def records(
    encoded: Iterable[Encoded], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of `seq_length` + 1 ids."""
    return only_blocks(_repeated(encoded, args.repeat), args.seq_length + 1, counts)


def _repeated(pieces: Iterable[Encoded], times: int) -> Iterator[Encoded]:
    """All pieces, again and again; they are kept only where they are needed again."""
    kept = []
    for piece in pieces:
        if times > 1:
            kept.append(piece)
        yield piece
    for _ in range(1, times):
        yield from kept


PARAGRAPHS = Preprocessor(
    help="WikiText files (.tokens or .raw): every paragraph a document, cut into blocks",
    suffixes=(".tokens", ".raw"),
    add_arguments=add_arguments,
    columns=columns,
    read=read,
    encode=encode,
    records=records,
)
