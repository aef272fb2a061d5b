"""A small vocabulary with the tokens of both roles, as the published one has them."""

from __future__ import annotations

import pytest

from lm_baichuan2.tokenizer import ASSISTANT, USER, Baichuan2Tokenizer
from lm_core.testing import tiny


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    """Its symbols are found in every text, whatever stands around; no space is implied."""
    symbols = ["<SEP>", "\n", USER, ASSISTANT]
    return tiny.sentencepiece_model(
        480, user_defined_symbols=symbols, add_dummy_prefix=False, allow_whitespace_only_pieces=True
    )


@pytest.fixture(scope="session")
def tokenizer(vocabulary) -> Baichuan2Tokenizer:
    return Baichuan2Tokenizer(vocabulary)
