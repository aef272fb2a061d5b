"""PanGu-alpha's tokenizer: words as jieba finds them, then pieces by sentencepiece.

Words stand apart by a space before they become pieces, so a real space and a line's end are spelt
with two characters of their own, which the vocabulary has as pieces; a text that holds one of the
two comes back with a space or a line's end. Special tokens in a text are text ("<", "eot", ">")
unless `split_special_tokens` is false; then what stands between them are texts of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer
from lm_core.tokenizer.values import plain, without_surrogates
from lm_core.tokenizer.words import cut

BLANK, LINE_END = "\N{LOWER ONE QUARTER BLOCK}", "\N{LOWER THREE EIGHTHS BLOCK}"
"""How pieces spell a space and the end of a line."""
NAMED = {"eos_token": "<eot>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""Tokens as the models use them; the vocabulary itself does not say."""
UNKNOWN = "\N{DOUBLE QUESTION MARK}"
"""What sentencepiece shows for characters that the vocabulary does not have."""
_SPELT = {" ": BLANK, "\n": LINE_END, "\r\n": f"\r{LINE_END}"}
"""The words that hold a space or a line's end."""
_MEANT = str.maketrans({BLANK: " ", LINE_END: "\n"})
_LINE_ENDS = re.compile(r"(\r?\n)")
_SYMBOLS = ("<sep>", "<pad>", "<mask>", "<eod>", "<eot>")
"""Special tokens that are ordinary pieces for sentencepiece."""


class PanguAlphaTokenizer(SentencePieceTokenizer):
    """Ids of PanGu-alpha."""

    file_name = "vocab.model"
    tokenizer_class = "PanguAlphaTokenizer"
    _space = ""

    def __init__(self, model: bytes, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`; `NAMED` unless given, and no token begins a text."""
        for name, token in NAMED.items():
            if settings.get(name) is None:
                settings[name] = token
        super().__init__(model, **settings)

    def _all_special(
        self, library: Any, named: Mapping[str, Any], given: Mapping[str, int]
    ) -> dict[str, int]:
        found = {token: self._index(library, token) for token in _SYMBOLS}
        there = {token: index for token, index in found.items() if index is not None}
        return super()._all_special(library, named, {**there, **given})

    def _own_special(self, library: Any) -> dict[str, int]:
        found = super()._own_special(library)
        # Sentencepiece shows control symbols as nothing.
        self._shown_as = {
            index: UNKNOWN if library.is_unknown(index) else "" for index in found.values()
        }
        return found

    # Text to ids.

    def _encode(self, text: str) -> Iterable[int]:
        words = cut(text)
        return self._first.encode(" ".join(map(_SPELT.get, words, words)))

    def _encode_after_special(self, text: str) -> Iterable[int]:
        return self._encode(text)

    def encode_within(self, text: str) -> list[int]:
        """Ids of text that stands within another: the same, because every word begins one."""
        return list(self._encode(without_surrogates(text)))

    def encode_piece(self, text: str) -> np.ndarray:
        """Ids [n] int32 of a piece of a longer text, nothing added: each line encoded alone.

        Sentencepiece sums scores in float32 from the beginning of what it is given, so in a text
        of 100,000 characters rounding decides between pieces that are nearly as good: `encode`,
        which leaves texts whole as the original does, differs in a few ids of 100,000 there.
        """
        if not self._by_lines:
            return super().encode_piece(text)
        ends = self._ends
        ids = (ends.get(line) or self._ids(line, None) for line in _LINE_ENDS.split(text) if line)
        return np.fromiter(chain.from_iterable(ids), np.int32)

    def cuts_at(self, left: str, right: str) -> bool:
        r"""True at both sides of a line's end ("\n" or "\r\n"), for `encode_piece`."""
        if not self._by_lines:
            return False
        return left[-1:] == "\n" or (right[:1] == "\n" and left[-1:] != "\r")

    @cached_property
    def _ends(self) -> dict[str, Iterable[int]]:
        """Ids of the ends of lines."""
        return {end: self._encode(end) for end in ("\n", "\r\n")}

    @cached_property
    def _by_lines(self) -> bool:
        """Whether no special token is looked for that a line's end could cut in two."""
        return self.split_special_tokens or not any("\n" in token for token in self.special)

    # Ids to text.

    def _text(self, ids: list[int], skip: bool) -> str:
        return super()._text(ids, skip).translate(_MEANT)

    def _bytes(self, ids: Sequence[int], after: int | None) -> bytes:
        return b"".join(map(self._spelt.__getitem__, ids)).replace(b" ", b"")

    def _shown(self, index: int) -> str:
        return self._shown_as.get(index, super()._shown(index))

    def decode_within(self, ids: Any) -> str:
        """Text of ids that stand within a text: the same. No special tokens."""
        return str(self.decode(plain(ids), skip_special_tokens=True))


def load(directory: Path) -> PanguAlphaTokenizer:
    """What `ModelSpec.tokenizer` calls."""
    return PanguAlphaTokenizer.from_pretrained(directory)
