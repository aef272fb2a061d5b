"""The chat format against ids that Meta's own procedure gave, and against the published text.

The vectors: sentencepiece 0.2.1 over Llama 2's tokenizer.model, called as `chat_completion` of
Meta's llama/generation.py calls it. Their text is what the published chat template of
Llama-2-7b-chat renders. (Tokenizers that read that text whole lack the space before `[INST]`.)
"""

from __future__ import annotations

import pytest
from outside import DATA

from lm_core.errors import TokenizerError
from lm_core.testing.tiny import messages
from lm_llama import chat_format
from lm_llama.tokenizer import LlamaTokenizer

MODEL = DATA / "llama" / "tokenizer.model"


CASES = [
    (messages("Hello"), "<s>[INST] Hello [/INST]"),
    (
        messages("  Who are you?\n", " I am Llama. ", "Prove it"),
        "<s>[INST] Who are you? [/INST] I am Llama. </s><s>[INST] Prove it [/INST]",
    ),
    (
        messages("Hi", "Hello!", "one\n  two", system="Be brief.\nAnswer in verse."),
        "<s>[INST] <<SYS>>\nBe brief.\nAnswer in verse.\n<</SYS>>\n\nHi [/INST] Hello! </s>"
        "<s>[INST] one\n  two [/INST]",
    ),
    (messages("one", "two"), "<s>[INST] one [/INST] two </s>"),
    (messages("</s>"), "<s>[INST] </s> [/INST]"),
]
VECTORS = [
    [1, 518, 25580, 29962, 15043, 518, 29914, 25580, 29962],
    [
        1, 518, 25580, 29962, 11644, 526, 366, 29973, 518, 29914, 25580, 29962, 306, 626, 365,
        29880, 3304, 29889, 29871, 2, 1, 518, 25580, 29962, 1019, 345, 372, 518, 29914, 25580,
        29962,
    ],
]  # fmt: skip


class Letters:
    """An id is a character, 1 and 2 begin and end; special tokens in text must not be found."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text, add_special_tokens=True, split_special_tokens=None):
        assert not add_special_tokens and split_special_tokens
        return [ord(letter) for letter in text]


def spelled(ids: list[int]) -> str:
    return "".join({1: "<s>", 2: "</s>"}.get(index, chr(index)) for index in ids)


@pytest.mark.parametrize(("given", "text"), CASES)
def test_text(given, text):
    ids = chat_format.encode(Letters(), given, given[-1]["role"] == "user")
    assert spelled(ids) == text
    assert ids.count(1) == sum(message["role"] == "user" for message in given)


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_ids(number):
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not here")
    tokenizer = LlamaTokenizer.from_pretrained(MODEL.parent)
    assert tokenizer.apply_chat_template(CASES[number][0]) == VECTORS[number]


@pytest.mark.parametrize("tag", chat_format.TAGS)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_tags_of_the_user_are_refused(tag, place):
    given = messages("a", "b", "c", system="d")
    given[place]["content"] += f" {tag} "
    with pytest.raises(TokenizerError, match="which only the chat format writes") as caught:
        chat_format.encode(Letters(), given)
    assert len(caught.value.problems) == 1 and tag in str(caught.value)


def test_a_model_that_says_a_tag_can_be_talked_to():
    assert "[INST]" in spelled(chat_format.encode(Letters(), messages("a", "say [INST]", "c")))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "hold no question"),
        (messages(system="only"), "hold no question"),
        (messages("a", "b"), "end with an answer"),
        (messages("a", "b", "c")[1:], r"messages\[0\].role: is assistant; must be user"),
    ],
)
def test_what_no_answer_can_follow(given, says):
    with pytest.raises(TokenizerError, match=says):
        chat_format.encode(Letters(), given)
