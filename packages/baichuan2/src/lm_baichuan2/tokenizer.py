"""Baichuan 2's tokenizer."""

from __future__ import annotations

from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer


class Baichuan2Tokenizer(SentencePieceTokenizer):
    """Ids of Baichuan 2."""

    tokenizer_class = "BaichuanTokenizer"
