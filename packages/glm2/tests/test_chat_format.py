"""Prompts against what the published `build_prompt` wrote, and conversations as ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outside import DATA

from lm_core.errors import TokenizerError
from lm_core.testing import tiny
from lm_core.testing.tiny import messages
from lm_glm2.tokenizer import ChatGlm2Tokenizer

VOCABULARY = DATA / "chatglm2_6b"
PROMPTS = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())["prompts"]
TWO_ROUNDS = "[Round 1]\n\n问：你好\n\n答：你好！\n\n[Round 2]\n\n问：晚上睡不着应该怎么办\n\n答："


@pytest.fixture(scope="module")
def tokenizer():
    return ChatGlm2Tokenizer(tiny.sentencepiece_model())


def test_the_text_of_a_prompt(tokenizer):
    assert tokenizer.build_prompt("你好") == "[Round 1]\n\n问：你好\n\n答："
    question = "晚上睡不着应该怎么办"
    for history in ([("你好", "你好！")], [["你好", "你好！"]], (("你好", "你好！"),)):
        assert tokenizer.build_prompt(question, history) == TWO_ROUNDS
        assert tokenizer.build_prompt(query=question, history=history) == TWO_ROUNDS
    assert tokenizer.build_prompt("", []) == tokenizer.build_prompt("", None)


@pytest.mark.parity
@pytest.mark.parametrize("case", range(len(PROMPTS)))
def test_prompts_are_the_original_ones(tokenizer, case):
    given = PROMPTS[case]
    assert tokenizer.build_prompt(given["query"], given["history"]) == given["text"]
    rounds = [text for pair in given["history"] for text in pair]
    talk = messages(*rounds, given["query"])
    assert tokenizer.apply_chat_template(talk) == tokenizer.encode(given["text"])
    if not VOCABULARY.is_dir():
        pytest.skip(f"{VOCABULARY} is not here")
    published = ChatGlm2Tokenizer.from_pretrained(VOCABULARY)
    assert published.apply_chat_template(talk) == given["ids"]
    assert (
        published(published.build_prompt(given["query"], given["history"]))["input_ids"]
        == (given["ids"])
    )


def test_the_prompt_is_one_text_and_not_a_text_a_round(tokenizer):
    """A space is implied before a text, so rounds that are encoded alone would have one each."""
    ids = tokenizer.apply_chat_template(messages("a", "b", "c"))
    first, second = "[Round 1]\n\n问：a\n\n答：b\n\n", "[Round 2]\n\n问：c\n\n答："
    assert ids == tokenizer.encode(first + second)
    assert ids != tokenizer.encode(first) + tokenizer.encode(second, add_special_tokens=False)
    assert ids[2:] == tokenizer.encode(first, False) + tokenizer.encode_within(second)


def test_a_system_message_stands_before_the_first_round(tokenizer):
    ids = tokenizer.apply_chat_template(messages("a", "b", "c", system="Be brief."))
    before = "Be brief.\n\n[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答："
    assert ids == tokenizer.encode(before)
    assert tokenizer.apply_chat_template(messages("a", system="")) == (
        tokenizer.apply_chat_template(messages("a"))
    )


def test_special_tokens_and_labels_of_users_are_text(tokenizer):
    text = "[gMASK] sop </s> [Round 7]\n\n问：x\n\n答："
    parsing = ChatGlm2Tokenizer(tokenizer.model, split_special_tokens=False)
    for one in (tokenizer, parsing):
        ids = one.apply_chat_template(messages(text, text, text, system=text))
        assert ids[:2] == one.prefix_ids
        assert set(ids[2:]).isdisjoint(one.all_special_ids)
        assert one.decode(ids).count(text) == 4


def test_without_an_answer_to_follow(tokenizer):
    """A last answer is encoded as in training; what is before it, as when it was asked for."""
    asked = tokenizer.apply_chat_template(messages("a", "b", "c"))
    ended = tokenizer.apply_chat_template(messages("a", "b", "c", "d"), add_generation_prompt=False)
    assert ended == [*asked, *tokenizer.encode("d", add_special_tokens=False), 2]
    still = tokenizer.apply_chat_template(messages("a", "b", "c"), add_generation_prompt=False)
    assert tokenizer.decode(still) == "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("q", "ab"), "history: is str; must be a list of"),
        (("q", {"a": "b"}), "history: is dict; must be a list of"),
        (("q", 3), "history: is int; must be"),
        (("q", ["ab"]), r"history\[0\]: is 'ab'; must be a pair of texts"),
        (("q", [("a", "b"), ("a",)]), r"history\[1\]: is \('a',\); must be a pair"),
        (("q", [("a", "b", "c")]), r"history\[0\]: is \('a', 'b', 'c'\)"),
        (("q", [("a", None)]), r"history\[0\]: is \('a', None\)"),
        (
            ("q", messages("a")),
            r"history\[0\]: is \{.*messages with roles are for apply_chat_te",
        ),
        ((None,), "query: is NoneType; must be the text of a question"),
        ((["q"],), "query: is list"),
    ],
)
def test_a_wrong_history(tokenizer, given, says):
    with pytest.raises(TokenizerError, match=says) as caught:
        tokenizer.build_prompt(*given)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_every_problem_has_a_line(tokenizer):
    with pytest.raises(TokenizerError) as caught:
        tokenizer.build_prompt(1, [2, ("a", "b"), 3])
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "query", "history[0]", "history[2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "hold no question"),
        (messages(system="only"), "hold no question"),
        (messages("a", "b"), "end with an answer"),
        (messages("a", "b", "c")[1:], r"messages\[0\].role: is assistant; must be user"),
    ],
)
def test_what_no_answer_can_follow(tokenizer, given, says):
    with pytest.raises(TokenizerError, match=says):
        tokenizer.apply_chat_template(given)
