"""PanGu-alpha's tokenizer: words by jieba, then pieces by sentencepiece.

Words stand apart by a space before they become pieces, so a real space and a line's end are spelt
with two characters of their own, which the vocabulary has as pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_core.metrics.words import cut
from lm_core.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer

BLANK, LINE_END = "\N{LOWER ONE QUARTER BLOCK}", "\N{LOWER THREE EIGHTHS BLOCK}"
"""How pieces spell a space and the end of a line."""
_SPELT = str.maketrans({" ": BLANK, "\n": LINE_END})
NAMED = {"eos_token": "<eot>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""Tokens as the models use them; the vocabulary itself does not say."""
_OTHERS = ("<sep>", "<mask>", "<eod>")


class PanguAlphaTokenizer(SentencePieceTokenizer):
    """Ids of PanGu-alpha."""

    file_name = "vocab.model"
    tokenizer_class = "PanguAlphaTokenizer"

    def __init__(self, model: bytes, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`; `NAMED` unless given, and no token begins a text."""
        for name, token in NAMED.items():
            if settings.get(name) is None:
                settings[name] = token
        super().__init__(model, **settings)

    def _all_special(
        self, library: Any, named: Mapping[str, Any], given: Mapping[str, int]
    ) -> dict[str, int]:
        found = {token: self._index(library, token) for token in _OTHERS}
        there = {token: index for token, index in found.items() if index is not None}
        return super()._all_special(library, named, {**there, **given})

    def _encode(self, text: str) -> Iterable[int]:
        return self._first.encode(" ".join(word.translate(_SPELT) for word in cut(text)))

    @cached_property
    def _spelt(self) -> list[bytes]:
        """The bytes that each piece means; a space within it only sets words apart."""
        meant = str.maketrans({SPACE: "", BLANK: " ", LINE_END: "\n"})
        return [piece.translate(meant).encode() for piece in self._pieces]

    def _bytes(self, ids: Sequence[int], after: int | None) -> bytes:
        return b"".join(map(self._spelt.__getitem__, ids))


def load(directory: Path) -> PanguAlphaTokenizer:
    """What `ModelSpec.tokenizer` calls."""
    return PanguAlphaTokenizer.from_pretrained(directory)
