"""Rounds to records: what fits is kept whole, what does not is counted, packed or not."""

from __future__ import annotations

import random
from argparse import ArgumentParser

import numpy as np
import pytest

from lm_core.data.dialogues import Dialogue
from lm_core.data.instruct import IGNORED, Piece, Round, fit, preprocessor
from lm_core.data.packing import Document, joined, pack
from lm_core.data.preprocess import Counts
from lm_core.data.vicuna import QA
from lm_core.errors import DataError


def made(question, answer):
    """A round of so many ids."""
    return Round(Piece.given([5] * question), Piece.trained([7] * answer))


def lengths(document):
    trained = int((document.labels != IGNORED).sum())
    return len(document.ids) - trained, trained


@pytest.mark.parametrize(
    ("rounds", "kept", "counted"),
    [
        ([(2, 3)], (2, 3), {}),
        ([(2, 3), (2, 3)], (4, 6), {}),
        ([(2, 3), (2, 4)], (2, 3), {"dialogues cut after an answer": 1, "rounds cut off": 1}),
        (
            [(2, 3), (9, 9), (1, 1)],
            (2, 3),
            {"dialogues cut after an answer": 1, "rounds cut off": 2},
        ),
        ([(2, 9)], (2, 8), {"dialogues cut inside the first answer": 1}),
        ([(9, 2)], (9, 1), {"dialogues cut inside the first answer": 1}),
        (
            [(4, 9), (1, 1)],
            (4, 6),
            {"dialogues cut inside the first answer": 1, "rounds cut off": 1},
        ),
    ],
)
def test_a_dialogue_ends_after_what_fits(rounds, kept, counted):
    counts = Counts()
    document = fit([made(*one) for one in rounds], 10, counts)
    assert lengths(document) == kept
    assert counts == counted


@pytest.mark.parametrize(
    ("length", "ids"),
    [
        (30, [5, 5, 7, 7, 5, 5, 7, 7, 5, 5, 7, 7, 2]),
        (13, [5, 5, 7, 7, 5, 5, 7, 7, 5, 5, 7, 7, 2]),
        (12, [5, 5, 7, 7, 5, 5, 7, 7, 2]),
        (9, [5, 5, 7, 7, 5, 5, 7, 7, 2]),
        (8, [5, 5, 7, 7, 2]),
        (5, [5, 5, 7, 7, 2]),
        (4, [5, 5, 7, 7]),
        (3, [5, 5, 7]),
    ],
)
def test_what_stands_behind_the_last_answer_alone(length, ids):
    one = Round(Piece.given([5, 5]), Piece.trained([7, 7]), last=Piece.trained([2]))
    document = fit([one] * 3, length, Counts())
    assert document.ids.tolist() == ids
    assert document.labels.tolist() == [IGNORED if index == 5 else index for index in ids]


@pytest.mark.parametrize("question", [10, 11, 500])
def test_a_question_that_leaves_no_room_leaves_the_dialogue_out(question):
    counts = Counts()
    assert fit([made(question, 3), made(1, 1)], 10, counts) is None
    assert counts == {"dialogues left out, the first question does not fit": 1}


def test_an_answer_that_is_cut_before_its_trained_part_leaves_the_dialogue_out():
    answer = Piece([6, 7, 7], [IGNORED, 7, 7])
    assert fit([Round(Piece.given([5] * 9), answer)], 10, Counts()) is None
    assert lengths(fit([Round(Piece.given([5] * 8), answer)], 10, Counts())) == (9, 1)


def documents(seed, count, longest):
    rng = random.Random(seed)
    for number in range(count):
        size = rng.randrange(1, longest + 1)
        ids = np.full(size, number + 1, np.int32)
        yield Document(ids, np.where(np.arange(size) % 2, IGNORED, ids).astype(np.int32))


@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_nothing_and_fits(seed):
    given = list(documents(seed, 300, 50))
    groups = list(pack(given, 50))
    sizes = [sum(len(one.ids) for one in group) for group in groups]
    assert max(sizes) <= 50
    found = sorted(int(one.ids[0]) for group in groups for one in group)
    assert found == list(range(1, 301))
    # Sizes spread evenly up to the length itself are the hardest to pack.
    assert sum(sizes) > 0.9 * 50 * (len(groups) - 2)
    assert len(groups) < 0.7 * len(given)


def test_packing_reads_no_further_than_it_must():
    read = []

    def reading():
        for document in documents(0, 10_000, 50):
            read.append(document)
            yield document

    next(pack(reading(), 50))
    assert len(read) < 300


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_documents_one_after_the_other(seed):
    for group in pack(documents(seed, 40, 9), 20):
        row = joined(group, 20, 0)
        assert {value.dtype for value in row.values()} == {np.dtype("int32")}
        assert {value.shape for value in row.values()} == {(20,)}
        for number, document in enumerate(group, 1):
            mine = row["segment_ids"] == number
            assert row["input_ids"][mine].tolist() == document.ids.tolist()
            assert row["labels"][mine].tolist() == [IGNORED, *document.labels[1:].tolist()]
        steps = np.diff(row["segment_ids"])
        padding = row["segment_ids"] == 0
        assert set(steps[~padding[1:]]) <= {0, 1}
        assert (row["input_ids"][padding] == 0).all()
        assert (row["labels"][padding] == IGNORED).all()
        assert padding.sum() == 20 - sum(len(one.ids) for one in group)


def flags(*words):
    parser = ArgumentParser()
    QA.add_arguments(parser)
    return parser.parse_args(words)


def run(args, tokenizer, dialogues):
    counts = Counts()
    counts["dialogues read"] = len(dialogues)
    encoded = iter(
        [QA.encode(tokenizer, args, dialogues[:7]), QA.encode(tokenizer, args, dialogues[7:])]
    )
    return list(QA.records(encoded, args, tokenizer, counts)), counts


def dialogues(count):
    rng = random.Random(count)
    words = ["who", "are", "you?", "a", "lobster,", "model", "of", "water"]

    def text():
        return " ".join(rng.choices(words, k=rng.randrange(1, 30)))

    return [
        Dialogue([(text(), text()) for _ in range(rng.randrange(1, 4))], "") for _ in range(count)
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_the_report_adds_up(pieces, packing):
    args = flags("--seq_length", "99", "--packing", str(packing))
    rows, counts = run(args, pieces, dialogues(50))
    left = counts["dialogues left out, the first question does not fit"]
    assert counts["records"] == len(rows)
    assert counts["dialogues written"] == 50 - left
    assert (len(rows) < 50 - left) == packing
    assert counts["trained tokens"] == sum((row["labels"] != IGNORED).sum() for row in rows)
    assert counts["tokens"] == sum((row["segment_ids"] > 0).sum() for row in rows)
    assert 0 < counts["dialogues cut after an answer"] < 50
    assert all((row["labels"] != IGNORED).any() for row in rows)
    assert all(len(row["input_ids"]) == 100 for row in rows)


def test_packed_dialogues_are_the_same_dialogues(pieces):
    given = dialogues(50)
    apart, _ = run(flags("--seq_length", "99"), pieces, given)
    packed, _ = run(flags("--seq_length", "99", "--packing"), pieces, given)

    def found(rows):
        return sorted(
            (row["input_ids"][mine].tolist(), row["labels"][mine].tolist())
            for row in rows
            for number in range(1, row["segment_ids"].max() + 1)
            for mine in [row["segment_ids"] == number]
        )

    assert found(apart) == found(packed)


def test_columns():
    assert QA.columns(flags()) == ("input_ids", "labels")
    assert QA.columns(flags("--packing")) == ("input_ids", "labels", "segment_ids")
    with pytest.raises(DataError, match="seq_length: 0 holds no token"):
        QA.columns(flags("--seq_length", "0"))


def test_nothing_to_write_says_why(pieces):
    with pytest.raises(DataError, match=r"none of 3 dialogues .* does not fit: 3; .*--seq_length"):
        run(flags("--seq_length", "5"), pieces, dialogues(3))


def shouting(tokenizer, dialogue):
    """A template of another model."""
    return [
        Round(Piece.given(tokenizer.encode_piece(q.upper())), Piece.trained([1, 2]))
        for q, _ in dialogue.rounds
    ]


def test_another_template(pieces):
    other = preprocessor(shouting, "another model")
    encoded = other.encode(pieces, flags(), [Dialogue([("a", "b")])])
    (document,) = encoded.documents
    assert document.ids.tolist() == [*pieces.encode_piece("A"), 1, 2]
    assert document.labels.tolist()[-3:] == [IGNORED, 1, 2]
