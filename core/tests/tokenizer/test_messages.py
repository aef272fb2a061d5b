"""Conversations as lists of messages."""

from __future__ import annotations

import random

import pytest

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import Tokenizer
from lm_core.tokenizer.messages import Conversation


def message(role: str, content: object = "x") -> dict:
    return {"role": role, "content": content}


def test_what_is_read_is_what_is_written():
    draw = random.Random(0)
    for _ in range(50):
        rounds = [(str(draw.random()), str(draw.random())) for _ in range(draw.randrange(4))]
        made = Conversation(draw.choice(["", "s"]), rounds, draw.choice([None, "", "q"]))
        assert Conversation.of_messages(made.messages()) == made
        skip = draw.randrange(len(rounds) + 1)
        cut = Conversation.of_messages(made.messages(skip))
        assert cut == Conversation(made.system, rounds[skip:], made.question)


def test_other_keys_and_tuples_are_fine():
    given = ({**message("user", "q"), "name": "me"}, message("assistant", "a"))
    assert Conversation.of_messages(given).rounds == [("q", "a")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Hello", "messages: is str; must be a list of"),
        (message("user"), "messages: is dict; must be a list of"),
        (None, "messages: is NoneType"),
        (["Hello"], r"messages\[0\]: is 'Hello'; must be \{\"role\": ROLE"),
        ([{"role": "user"}], r"messages\[0\]: is \{'role': 'user'\}"),
        ([message("bot")], r"messages\[0\].role: is 'bot'; must be one of system, user, assistant"),
        ([message(["user"])], r"messages\[0\].role: is \['user'\]"),
        ([message("user", 3)], r"messages\[0\].content: is int; must be text"),
        ([message("assistant")], r"messages\[0\].role: is assistant; must be user"),
        ([message("system"), message("assistant")], r"messages\[1\].role: is assistant"),
        ([message("user"), message("user")], r"messages\[1\].role: is user; must be assistant"),
        ([message("user"), message("system")], r"messages\[1\].role: is system; must be assis"),
    ],
)
def test_refused(given, says):
    with pytest.raises(TokenizerError, match=says) as caught:
        Conversation.of_messages(given)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_every_problem_has_a_line():
    with pytest.raises(TokenizerError) as caught:
        Conversation.of_messages([1, message("user", 2), message("x")])
    assert len(caught.value.problems) == 3


def test_what_can_be_answered():
    asked, answered = Conversation(question="q"), Conversation(rounds=[("q", "a")])
    for made in (asked, answered):
        made.check(answer_follows=False)
    asked.check(answer_follows=True)
    with pytest.raises(TokenizerError, match="messages: end with an answer; must end with a ques"):
        answered.check(answer_follows=True)
    with pytest.raises(TokenizerError, match="messages: hold no question; must hold one; add a"):
        Conversation("s").check(answer_follows=False)


def test_a_tokenizer_without_a_format():
    with pytest.raises(TokenizerError, match="chat: Tokenizer has no chat format; must be"):
        Tokenizer({}).apply_chat_template([message("user")])
