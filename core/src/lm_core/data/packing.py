"""Several documents in one record, kept apart by a column `segment_ids`.

`segment_ids` [L] is 1 at the tokens of the first document of a record, 2 at those of the second and
so on, and 0 at padding. Positions count from 0 in each segment, and attention stays inside one. The
first token of a document is not predicted from the document before it.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_core.config.flags import str2bool
from lm_core.config.model import IGNORED
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row


class Ends(NamedTuple):
    """How documents end that stand one after the other in records (`eod_reset`)."""

    end: int
    """The token behind each document."""
    pad: int | None
    """What fills records up; None: nothing does."""


SEGMENTS = "segment_ids"
# Records that are filled at a time: more waste less room and mix documents from further apart.
_OPEN = 64


class Document(NamedTuple):
    """What belongs together: ids and aligned labels, int32 [n]."""

    ids: np.ndarray
    labels: np.ndarray


def add_packing(parser: ArgumentParser, documents: str) -> None:
    """`--packing`, of what the records hold."""
    parser.add_argument(
        "--packing",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help=f"put several {documents} into a record and add the column {SEGMENTS}, by which "
        f"attention and positions keep them apart (default: False)",
    )


def add_seq_length(parser: ArgumentParser) -> None:
    """`--seq_length`, of which records are one id longer."""
    parser.add_argument(
        "--seq_length",
        type=int,
        default=2048,
        metavar="N",
        help="the model's; records hold one id more, the last target (default: 2048)",
    )


def check_seq_length(args: Namespace) -> None:
    """Raises DataError if records would have nothing to predict."""
    if args.seq_length < 1:
        raise DataError(f"seq_length: {args.seq_length} holds no token; use at least 1")


def pack(documents: Iterable[Document], length: int) -> Iterator[list[Document]]:
    """Groups of documents of at most `length` ids together; nothing is cut.

    A document goes where it leaves the least room, among a number of groups that bounds both
    memory and the distance over which the order changes.
    """
    groups: list[list[Document]] = []
    rooms: list[int] = []
    for document in documents:
        size = len(document.ids)
        assert 0 < size <= length, f"a document of {size} ids for records of {length}"
        fitting = [(room, at) for at, room in enumerate(rooms) if room >= size]
        if fitting:
            at = min(fitting)[1]
            groups[at].append(document)
            rooms[at] -= size
        else:
            groups.append([document])
            rooms.append(length - size)
        if len(groups) > _OPEN or 0 in rooms:
            fullest = rooms.index(min(rooms))
            rooms.pop(fullest)
            yield groups.pop(fullest)
    yield from groups


def document_numbers(ids: np.ndarray, end: int, pad: int | None) -> np.ndarray:
    """`segment_ids` [L] of a record in which a token ends each document.

    Args:
        ids: [L].
        end: the token; it belongs to the document that it ends.
        pad: what fills the record up at the end; None: nothing does. Where it is the same token,
            the first of that run ends the last document.
    """
    found = np.zeros(len(ids), np.int32)
    found[1:] = np.cumsum(ids[:-1] == end)
    found += 1
    if pad is not None:
        real = np.flatnonzero(ids != pad)
        size = real[-1] + 1 if real.size else 0
        found[size + int(pad == end and size > 0) :] = 0
    return found


def joined(documents: Sequence[Document], length: int, pad: int) -> Row:
    """Columns input_ids, labels and segment_ids [length] of documents one after the other."""
    ids = np.full(length, pad, np.int32)
    labels = np.full(length, IGNORED, np.int32)
    segments = np.zeros(length, np.int32)
    end = 0
    for number, document in enumerate(documents, 1):
        start, end = end, end + len(document.ids)
        ids[start:end] = document.ids
        labels[start:end] = document.labels
        labels[start] = IGNORED
        segments[start:end] = number
    return {"input_ids": ids, "labels": labels, SEGMENTS: segments}
