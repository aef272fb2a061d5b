"""A small vocabulary that is learnt here, so that nothing has to be downloaded."""

from __future__ import annotations

import pytest

from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe

END = "<|endoftext|>"
CORPUS = (
    "It's the lobster's habit: they're found in water, and we've seen 12 or 123 of them.\n"
    "The water was cold; the lobsters weren't. 'Don't wait,' said the cook, 'water the lobster!'\n"
    "你好，今天天气不错。 Die Straße ist länger. \N{GRINNING FACE}\n\n    indented  code = [1, 2]\n"
) * 5


@pytest.fixture(scope="session")
def learnt():
    return train_bpe([CORPUS], 400)


@pytest.fixture
def bpe(learnt):
    return ByteLevelBpe(*learnt, eos_token=END, pad_token=END, bos_token=END, unk_token=END)
