"""Dialogues to records of which only the answers are trained.

A template makes rounds of ids out of a dialogue, question and answer apart, so which id belongs to
an answer is never searched for. Columns are `input_ids` and `labels` [seq_length + 1], aligned (the
labels are not shifted) and filled up on the right, and with `--packing` `segment_ids`.

A dialogue that is too long ends with the last round that fits. Of a first round that does not fit
the answer is cut; where not even its question does, the dialogue is left out. All is counted.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_core.data.dialogues import Dialogue, read_dialogues
from lm_core.data.packing import (
    IGNORED,
    SEGMENTS,
    Document,
    add_packing,
    add_seq_length,
    check_seq_length,
    joined,
    pack,
)
from lm_core.data.preprocess import Counts, Item, Preprocessor, reasons
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

COLUMNS = ("input_ids", "labels")


class Piece(NamedTuple):
    """Ids, and for each the label: itself if it is trained, else -100."""

    ids: list[int]
    labels: list[int]

    @classmethod
    def given(cls, ids: Sequence[int]) -> Piece:
        """Ids that are not trained."""
        return cls(list(ids), [IGNORED] * len(ids))

    @classmethod
    def trained(cls, ids: Sequence[int]) -> Piece:
        """Ids that are."""
        return cls(list(ids), list(ids))


class Round(NamedTuple):
    """A question with all that stands before its answer, and the answer with its end.

    Attributes:
        question: its first label may be what ends the answer before it.
        answer: what the model is to say.
        last: what stands behind the answer only where no round follows.
    """

    question: Piece
    answer: Piece
    last: Piece = Piece([], [])

    @property
    def size(self) -> int:
        """Number of ids before another round."""
        return len(self.question.ids) + len(self.answer.ids)


Template = Callable[["Tokenizer", Dialogue], list[Round]]
"""How a model is told a dialogue. A function of a module, so that other processes find it."""


class Encoded(NamedTuple):
    """Dialogues as documents that fit, and what had to be left out of them."""

    documents: list[Document]
    counts: Counts


def preprocessor(template: Template, description: str) -> Preprocessor:
    """`preprocess` for dialogues in one template."""
    return Preprocessor(
        help=f"dialogues (JSON, JSON lines) in the template of {description}; answers are trained",
        suffixes=(".json", ".jsonl"),
        add_arguments=add_arguments,
        columns=columns,
        read=read,
        encode=partial(encode, template),
        records=records,
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of dialogues."""
    add_seq_length(parser)
    add_packing(parser, "dialogues")


def columns(args: Namespace) -> Sequence[str]:
    """The columns of the records. Raises DataError if a flag is impossible."""
    check_seq_length(args)
    return (*COLUMNS, SEGMENTS) if args.packing else COLUMNS


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of dialogues."""
    return read_dialogues(files, counts)


def encode(
    template: Template, tokenizer: Tokenizer, args: Namespace, work: Sequence[Dialogue]
) -> Encoded:
    """Dialogues in a template, cut to the length of a record."""
    counts: Counts = Counter()
    fitted = (fit(template(tokenizer, one), args.seq_length + 1, counts) for one in work)
    return Encoded([document for document in fitted if document is not None], counts)


def fit(rounds: Sequence[Round], length: int, counts: Counts) -> Document | None:
    """As much of a dialogue as `length` ids hold; None if that is no trained token."""
    kept: list[Round] = []
    room = length
    for one in rounds:
        if one.size + len(one.last.ids) > room:
            break
        kept.append(one)
        room -= one.size
    if not kept:
        first = _cut_answer(rounds[0], length)
        if first is None:
            counts["dialogues left out, the first question does not fit"] += 1
            return None
        counts["dialogues cut inside the first answer"] += 1
        kept = [first]
    elif len(kept) < len(rounds):
        counts["dialogues cut after an answer"] += 1
    if len(kept) < len(rounds):
        counts["rounds cut off"] += len(rounds) - len(kept)
    return _document(kept)


def _cut_answer(one: Round, length: int) -> Round | None:
    """The round with as much of its answer as there is room for, if any of it is trained."""
    room = max(length - len(one.question.ids), 0)
    answer = Piece(one.answer.ids[:room], one.answer.labels[:room])
    trained = any(label != IGNORED for label in answer.labels)
    return Round(one.question, answer) if trained else None


def _document(rounds: Sequence[Round]) -> Document:
    pieces = [piece for one in rounds for piece in (one.question, one.answer)]
    pieces.append(rounds[-1].last)
    ids, labels = ([value for piece in pieces for value in piece[k]] for k in (0, 1))
    return Document(np.array(ids, np.int32), np.array(labels, np.int32))


def records(
    encoded: Iterator[Encoded], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of one dialogue each, or of several with `--packing`, and the counts of them."""
    length, pad = args.seq_length + 1, tokenizer.pad_token_id or 0
    documents = _documents(encoded, counts)
    groups = pack(documents, length) if args.packing else ([one] for one in documents)
    total: Counts = Counter()
    for group in groups:
        row = joined(group, length, pad)
        total["records"] += 1
        total["dialogues written"] += len(group)
        total["tokens"] += sum(len(one.ids) for one in group)
        total["trained tokens"] += int((row["labels"] != IGNORED).sum())
        yield row
    counts.update(total)
    if not total:
        raise DataError(
            f"seq_length: none of {counts['dialogues read']:,} dialogues became a record: "
            f"{reasons(counts)}; give other dialogues or a larger --seq_length"
        )


def _documents(encoded: Iterator[Encoded], counts: Counts) -> Iterator[Document]:
    for one in encoded:
        counts.update(one.counts)
        yield from one.documents
