"""The text of an answer as it comes: nothing is sent that a stop sequence may still take back."""

from __future__ import annotations

import random

import pytest

from lm_core.serving.engine import Chances
from lm_core.serving.text import AnswerText


class Words:
    """Each id is a text of one to three characters."""

    texts = ("a", "b", "ab", "ba", "aab", "c", " ", "bb")

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.texts[index] for index in ids)


def oracle(tokens: list[int], stops: list[str]) -> tuple[str, int]:
    """The text up to the first stop sequence that is complete after a token, and tokens used."""
    text = ""
    for count, token in enumerate(tokens, 1):
        text += Words.texts[token]
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)], count
    return text, len(tokens)


def read(tokens: list[int], stops: list[str], strip: bool = False):
    pieces = []
    reader = AnswerText(Words(), pieces.append, 1, stops, strip)
    used = len(tokens)
    for count, token in enumerate(tokens, 1):
        if reader.token(token, None):
            used = count
            break
    reader.end("stop" if used < len(tokens) else "length")
    return pieces, used


def test_what_is_sent_is_the_text_before_the_first_stop_sequence():
    choose = random.Random(3)
    stopped = 0
    for _ in range(600):
        tokens = [choose.randrange(8) for _ in range(choose.randrange(1, 30))]
        stops = ["".join(choose.choices("abc ", k=choose.randrange(1, 5))) for _ in range(2)]
        pieces, used = read(tokens, stops)
        text, count = oracle(tokens, stops)
        assert "".join(piece.text for piece in pieces) == text
        assert used == count == pieces[-1].count
        assert [bool(piece.reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        stopped += text != Words().decode(tokens)
    assert stopped > 100


def test_only_what_may_become_a_stop_sequence_waits():
    pieces = []
    reader = AnswerText(Words(), pieces.append, stops=["ba "])
    sent = []
    for token in (0, 1, 0, 5, 1, 0, 6):  # a b a c b a " "
        reader.token(token, None)
        sent.append("".join(piece.text for piece in pieces))
    assert sent == ["a", "a", "a", "abac", "abac", "abac", "abac"]


def test_an_answer_that_reaches_its_length_with_a_stop_sequence_is_stopped():
    pieces, _ = read([0, 5], ["c"])
    assert (pieces[-1].reason, pieces[-1].count) == ("stop", 2)
    pieces, _ = read([0, 5], ["d"])
    assert (pieces[-1].reason, pieces[-1].count) == ("length", 2)


def test_white_space_before_an_answer():
    assert "".join(piece.text for piece in read([6, 6, 0, 6, 1], [], strip=True)[0]) == "a b"
    assert "".join(piece.text for piece in read([6, 6], [], strip=True)[0]) == ""


def test_chances_come_with_their_tokens_though_their_text_waits():
    pieces = []
    reader = AnswerText(Words(), pieces.append, stops=["bc"])
    chances = Chances(-1.0, [(1, -0.5)])
    for token in (0, 1, 0):
        reader.token(token, chances)
    found = [(piece.text, [(t.id, t.offset) for t in piece.tokens]) for piece in pieces]
    assert found == [("a", [(0, 0)]), ("", [(1, 1)]), ("ba", [(0, 2)])]


@pytest.mark.parametrize(("reason", "count"), [("stop", 2), ("length", 1), ("cancelled", 1)])
def test_the_token_that_ends_an_answer_counts(reason, count):
    pieces = []
    reader = AnswerText(Words(), pieces.append)
    reader.token(0, None)
    reader.end(reason)
    assert (pieces[-1].reason, pieces[-1].count) == (reason, count)
