"""ChatGLM2's tokenizer: every text begins with `[gMASK] sop`, two of five tokens behind the pieces.

The published program takes its special tokens from the vocabulary and from nowhere else, whatever
the files of a folder name: `</s>` ends a text, `<unk>` pads. What the five are called ("sop") is a
word like others in a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_core.log import notice_once
from lm_core.tokenizer.base import NAMES
from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer
from lm_glm2 import chat_format

BEHIND = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""Tokens with the ids after the last piece: 64789 to 64793 for the published vocabulary."""

FIXED = (*NAMES, "add_bos_token", "add_eos_token")
"""What other tokenizers let a folder decide."""

AUTO_MAP = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
"""Where the published program finds its own code."""


class ChatGlm2Tokenizer(SentencePieceTokenizer):
    """Ids of ChatGLM2.

    Rows are padded at the right, as everywhere here, because a network is given no mask. With
    `padding_side = "left"` they are padded as the published program does it; then pass the
    attention mask to `generate`, too.
    """

    tokenizer_class = "ChatGLMTokenizer"
    _skips_special = True

    def __init__(self, model: bytes, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`, but what `FIXED` lists may be given without effect."""
        named = {name: settings.pop(name, None) for name in FIXED}
        super().__init__(model, **settings)
        self.pad_token = self.unk_token
        others = [
            f"{name} {value}"
            for name, value in named.items()
            if value not in (None, getattr(self, name))
        ]
        if others:
            text = ", ".join(others)
            notice_once(
                text,
                f"tokenizer: without effect: {text}; ChatGLM2 begins texts with [gMASK] sop and "
                f"has {self.bos_token}, {self.eos_token}, {self.unk_token} from its vocabulary",
            )

    def _own_special(self, library: Any) -> dict[str, int]:
        behind = {token: len(self._pieces) + place for place, token in enumerate(BEHIND)}
        return super()._own_special(library) | behind

    def _all_special(
        self, library: Any, named: Mapping[str, Any], given: Mapping[str, int]
    ) -> dict[str, int]:
        own = self._own_special(library)
        taken = set(own.values())
        self._added = {
            token: index
            for token, index in given.items()
            if token not in own and index not in taken
        }
        return own | self._added

    @property
    def prefix_ids(self) -> list[int]:
        """Ids of `[gMASK] sop`."""
        return [self.special["[gMASK]"], self.special["sop"]]

    def build_prompt(self, query: str, history: Sequence[Sequence[str]] | None = None) -> str:
        """A question as the next round of a conversation; see `lm_glm2.chat_format`."""
        return chat_format.prompt(query, history)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """See `lm_glm2.chat_format`."""
        return chat_format.encode(self, messages, add_generation_prompt)

    def settings(self) -> dict[str, Any]:
        """Neither what is fixed nor the five tokens: the published program has both of its own.

        Given in the file, they would end its loading, or make "sop" in a text a special token.
        """
        added = {
            str(index): {"content": token, "special": True} for token, index in self._added.items()
        }
        config = {name: value for name, value in super().settings().items() if name not in FIXED}
        return {**config, "added_tokens_decoder": added, "auto_map": AUTO_MAP}


def load(directory: Path) -> ChatGlm2Tokenizer:
    """What `ModelSpec.tokenizer` calls."""
    return ChatGlm2Tokenizer.from_pretrained(directory)
