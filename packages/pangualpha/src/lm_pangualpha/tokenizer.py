"""PanGu-alpha's tokenizer."""

from __future__ import annotations

from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer


class PanguAlphaTokenizer(SentencePieceTokenizer):
    """Ids of PanGu-alpha."""
