"""Texts with a gap: where it is, and showing it while it is filled."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation.infill import Gap, InfillStreamer, read_gaps
from lm_core.testing import tiny
from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(tiny.sentencepiece_model())


def test_texts_are_cut_at_their_mark_and_nothing_is_trimmed():
    texts = [" a <FILL_ME>\n b", "<FILL_ME>", "x<FILL_ME>"]
    assert read_gaps(texts) == [Gap(" a ", "\n b"), Gap("", ""), Gap("x", "")]


def test_all_texts_without_one_mark_are_named():
    with pytest.raises(GenerationError) as caught:
        read_gaps(["a", "b<FILL_ME>", "<FILL_ME><FILL_ME>"])
    assert str(caught.value).splitlines() == [
        "predict_data[0]: has no <FILL_ME>; must have one, where text is missing; put it there",
        "predict_data[2]: has 2 <FILL_ME>; must have one, where text is missing; remove the others",
    ]


def test_a_gap_is_shown_while_it_is_filled(tokenizer):
    stream = io.StringIO()
    gap, answer = Gap("def f(x):\n", "\n# 你"), tokenizer.encode_within("return 你\U0001f600")
    streamer = InfillStreamer(tokenizer, gap)
    streamer.stream = stream
    streamer.put(np.array([1, *tokenizer.encode("something else")]))
    assert stream.getvalue() == gap.prefix
    for index in answer:
        streamer.put(np.array([index]))
    streamer.end()
    assert stream.getvalue() == "def f(x):\nreturn 你\U0001f600\n# 你\n"
    streamer.put(np.array([1, 2]))
    streamer.end()
    assert stream.getvalue().endswith("\ndef f(x):\n\n# 你\n")
