"""What of a conversation a model still reads, and answers that end early."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation.chat import Answerer, AnswerStopped, AnswerStreamer, chat_settings
from lm_core.generation.generate import generate
from lm_core.tokenizer.messages import Conversation


class Lines:
    """An id is a character; a message is a line, and `>` begins the answer."""

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return [ord(c) for c in "".join(f"{m['content']}\n" for m in messages) + ">"]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(index) for index in ids if index != 3 or not skip_special_tokens)


def answerer(fake, context: int, **options) -> Answerer:
    model = fake(vocab=128, positions=context, eos_token_id=3)
    model.generate = lambda ids, settings, streamer=None, **more: generate(
        model, ids, settings, streamer, **more
    )
    return Answerer(model, Lines(), chat_settings(model.config, **options))


def talk(rounds: int, question: str = "q", system: str = "") -> Conversation:
    return Conversation(system, [(f"q{n}", f"a{n}") for n in range(rounds)], question)


def test_all_that_fits_is_read(fake):
    made = answerer(fake, 64, max_new_tokens=10)
    for rounds in range(15):
        said = talk(rounds, system="sys")
        ids, skipped = made.prompt(said)
        text = made.tokenizer.decode(ids)
        assert text.startswith("sys\n") and text.endswith("q\n>")
        assert len(ids) <= 54
        assert ids == made.tokenizer.apply_chat_template(said.messages(skipped))
        if skipped:  # one more round would have been too much
            assert len(made.tokenizer.apply_chat_template(said.messages(skipped - 1))) > 54
    assert skipped == 8  # "sys\n", 2 rounds of 6, 4 of 8 and "q\n>" are 51 characters


def test_an_answer_that_may_be_as_long_as_the_context_leaves_half_for_the_past(fake):
    for options in ({"max_new_tokens": 64}, {"max_new_tokens": 1000}):
        made = answerer(fake, 64, **options)
        assert (made.longest, made.reserve) == (64, 32)
        assert made.prompt(talk(3))[1] == 0
    assert answerer(fake, 64, max_length=40).longest == 40
    assert answerer(fake, 64).reserve == 16


def test_a_question_alone_may_take_more_than_that(fake):
    made = answerer(fake, 64, max_new_tokens=32)
    ids, skipped = made.prompt(talk(2, "q" * 61))
    assert (len(ids), skipped) == (63, 2)
    with pytest.raises(GenerationError, match="message: has 64 tokens; must have at most 63"):
        made.prompt(talk(2, "q" * 62))
    with pytest.raises(GenerationError, match="has 67 tokens with the system message; must"):
        made.prompt(talk(2, "q" * 61, "sys"))


def test_settings(fake):
    config = fake(positions=100).config
    assert chat_settings(config).max_length == 100  # not 20 tokens
    assert chat_settings(config, max_new_tokens=5).max_length is None
    own = fake(positions=100, max_decode_length=50, do_sample=True, top_k=3).config
    settings = chat_settings(own, temperature=0.5)
    assert (settings.max_length, settings.do_sample) == (50, True)
    assert (settings.top_k, settings.temperature) == (3, 0.5)
    with pytest.raises(GenerationError, match="num_beams: 2; must be 1 to chat"):
        chat_settings(config, num_beams=2)
    with pytest.raises(GenerationError, match="top_p: 3"):
        chat_settings(config, top_p=3.0)


def test_a_seed_gives_the_same_conversation_but_not_the_same_answers(fake):
    def answers(seed) -> list[str]:
        made = answerer(fake, 64, max_new_tokens=9, do_sample=True, seed=seed)
        found = []
        for _ in range(3):
            streamer = AnswerStreamer(made.tokenizer, lambda: False, io.StringIO())
            made.generate([70, 71], streamer)
            found.append(streamer.text)
        return found

    assert answers(1) == answers(1)
    assert len(set(answers(1))) == 3 and answers(1)[1] == answers(2)[0]
    assert answers(None) != answers(None)


def test_stopping_keeps_what_was_said(fake):
    made = answerer(fake, 64, max_new_tokens=30)
    whole = AnswerStreamer(made.tokenizer, lambda: False, io.StringIO())
    made.generate([70], whole)
    for after in (0, 1, 5):
        calls = iter([False] * after)
        shown = io.StringIO()
        streamer = AnswerStreamer(made.tokenizer, lambda calls=calls: next(calls, True), shown)
        with pytest.raises(AnswerStopped):
            made.generate([70], streamer)
        model = made.model
        steps = model.opened[-1].steps
        assert steps == max(0, after - 1)  # the first call is the prompt
        ids = model.opened[-1].cache[0][1:]
        assert streamer.text == whole.text[: len(streamer.text)]
        assert streamer.text == made.tokenizer.decode(ids).lstrip()
        assert shown.getvalue().removesuffix("\n") == streamer.text.removesuffix("\n")


@pytest.mark.parametrize(
    ("tokens", "text", "shown"),
    [
        ("  \n Hello", "Hello", "Hello\n"),
        ("a b\n", "a b\n", "a b\n"),
        ("", "", "\n"),
        (" \n", "", "\n"),
        ("a\x03", "a", "a\n"),
    ],
)
def test_the_text_of_an_answer(tokens, text, shown):
    stream = io.StringIO()
    streamer = AnswerStreamer(Lines(), lambda: False, stream)
    streamer.put(np.array([ord(c) for c in "the prompt"]))
    for token in tokens:
        streamer.put(np.array([ord(token)]))
    streamer.end()
    assert (streamer.text, stream.getvalue()) == (text, shown)


def test_the_model_config_of_the_context_counts():
    model = SimpleNamespace(config=SimpleNamespace(seq_length=10))
    settings = SimpleNamespace(max_length=99, max_new_tokens=None)
    assert Answerer(model, None, settings).longest == 10
