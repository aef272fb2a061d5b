"""Baichuan 2's tokenizer: nothing stands around a text, and no space is implied before it.

The tokens of both roles are ordinary pieces of the vocabulary, which a prompt may spell out:
"<reserved_106>Who are you?<reserved_107>". What somebody says in a conversation is encoded without
them, so that nobody can speak for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_baichuan2 import chat_format
from lm_core.errors import TokenizerError
from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer
from lm_core.tokenizer.values import without_surrogates

USER, ASSISTANT = "<reserved_106>", "<reserved_107>"
"""Ids 195 and 196 of the published vocabulary."""

AUTO_MAP = {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]}
"""Where the published program finds its own code."""


class Baichuan2Tokenizer(SentencePieceTokenizer):
    """Ids of Baichuan 2; rows are padded by `<unk>`."""

    tokenizer_class = "BaichuanTokenizer"

    def __init__(self, model: bytes, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`."""
        super().__init__(model, **settings)
        if self.pad_token is None:
            self.pad_token = self.unk_token

    @property
    def user_token_id(self) -> int:
        """Id of the token before what a user says."""
        return self._role(USER)

    @property
    def assistant_token_id(self) -> int:
        """Id of the token before what the assistant says."""
        return self._role(ASSISTANT)

    def _role(self, token: str) -> int:
        index = self._id(token)
        if index is None:
            raise TokenizerError(
                f"chat: this vocabulary of {self.vocab_size} has no token {token}; must be that of "
                f"Baichuan 2 (125696), which has one for each role; use it"
            )
        return index

    @cached_property
    def _spoken(self) -> Any:
        """Cuts text in which the tokens of roles are ordinary text."""
        return self._without([self.user_token_id, self.assistant_token_id])

    def encode_said(self, text: str) -> list[int]:
        """Ids of what somebody says; no token of a role is among them, nor a special one."""
        return self._spoken.encode(without_surrogates(text))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """See `lm_baichuan2.chat_format`."""
        return chat_format.encode(self, messages, add_generation_prompt)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "auto_map": AUTO_MAP}


def load(vocab_file: str | Path) -> Baichuan2Tokenizer:
    """What `ModelSpec.tokenizer` calls, with the folder of the file or the file."""
    return Baichuan2Tokenizer.from_pretrained(vocab_file)
