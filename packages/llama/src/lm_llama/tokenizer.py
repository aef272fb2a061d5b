"""Llama's tokenizer, and the infilling of Code Llama (Roziere et al. 2023, section 2.3).

The infilling tokens of Code Llama are ordinary pieces of its vocabulary (32016 pieces), so the
original encodes " <PRE>" in a text to the token. Here they are special: text never has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_core.errors import TokenizerError
from lm_core.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from lm_core.tokenizer.values import plain
from lm_llama import chat_format

PREFIX, SUFFIX, MIDDLE, END = (f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))


class LlamaTokenizer(SentencePieceTokenizer):
    """Ids of Llama, Llama 2, Code Llama; texts begin with `<s>`, rows are padded by `<unk>`."""

    tokenizer_class = "LlamaTokenizer"

    def __init__(self, model: bytes, *, add_bos_token: bool = True, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`."""
        super().__init__(model, add_bos_token=add_bos_token, **settings)
        if self.pad_token is None:
            self.pad_token = self.unk_token

    def _own_special(self, library: Any) -> dict[str, int]:
        infill = {token: self._index(library, token) for token in (PREFIX, SUFFIX, MIDDLE, END)}
        found = {token: index for token, index in infill.items() if index is not None}
        own = super()._own_special(library)
        return own | found if len(found) == len(infill) else own

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """See `lm_llama.chat_format`."""
        return chat_format.encode(self, messages, add_generation_prompt)

    @property
    def can_infill(self) -> bool:
        """Whether the vocabulary has the four tokens of Code Llama 7b and 13b."""
        return END in self.special

    @property
    def infill_end_id(self) -> int | None:
        """Id of `<EOT>`."""
        return self.special.get(END)

    def build_infill_prompt(
        self, prefix: str, suffix: str, suffix_first: bool = False
    ) -> list[int]:
        """`<s> <PRE> prefix <SUF> suffix <MID>`, or `<s> <PRE> <SUF> suffix <MID> prefix`.

        No space is implied before the suffix; special tokens in either are ordinary text.
        """
        if not self.can_infill:
            raise TokenizerError(
                f"infill: this vocabulary of {self.vocab_size} has no tokens for infilling; must "
                f"be that of Code Llama 7b or 13b (32016), base or Instruct; use such a model, or "
                f"give it the beginning alone"
            )
        first = self.encode(prefix, add_special_tokens=False, split_special_tokens=True)
        last = self.encode_within(suffix)
        before, after, middle = (self.special[token] for token in (PREFIX, SUFFIX, MIDDLE))
        begin = [index for index in (self.bos_token_id,) if index is not None]
        if suffix_first:
            return [*begin, before, after, *last, middle, *first]
        return [*begin, before, *first, after, *last, middle]

    def decode_infill(self, ids: Any) -> str:
        """Text of an answer up to `<EOT>`; a space at its beginning is its own."""
        row, end = plain(ids), self.infill_end_id
        return self.decode_within(row[: row.index(end)] if end in row else row)

    def _begins(self, after: int | None) -> bool:
        inside = (self.special.get(token) for token in (SUFFIX, MIDDLE))
        return super()._begins(after) and (after is None or after not in inside)

    def settings(self) -> dict[str, Any]:
        kind = {"tokenizer_class": "CodeLlamaTokenizer"} if self.can_infill else {}
        return {**super().settings(), **kind}


def load(directory: Path) -> LlamaTokenizer:
    """What `ModelSpec.tokenizer` calls."""
    return LlamaTokenizer.from_pretrained(directory)
