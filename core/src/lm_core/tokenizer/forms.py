"""What a tokenizer has only where its model was trained on it: questions, dialogues, infilling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_core.errors import TokenizerError


class Forms:
    """None of them; the tokenizer of a model that has one overrides it."""

    def build_prompt(self, query: str, history: Sequence[Sequence[str]] | None = None) -> str:
        """A question in the words in which a model was trained to be asked, after earlier rounds.

        Raises:
            TokenizerError: no such words are known for this tokenizer.
        """
        raise TokenizerError(
            f"build_prompt: {type(self).__name__} has no form for questions; must be the tokenizer "
            f"of a model that was trained on one (ChatGLM2); use another model or other data"
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation in the form in which a model was trained to chat.

        Args:
            messages: see `lm_core.tokenizer.messages`.
            add_generation_prompt: end where the answer to the last message begins.

        Raises:
            TokenizerError: no form is known for this tokenizer, or messages do not fit it.
        """
        raise TokenizerError(
            f"chat: {type(self).__name__} has no chat format; must be the tokenizer of a model "
            f"that was trained to chat; use another model"
        )

    @property
    def infill_end_id(self) -> int | None:
        """Id of the token that ends what a model puts between two texts; None: it cannot."""
        return None

    def build_infill_prompt(
        self, prefix: str, suffix: str, suffix_first: bool = False
    ) -> list[int]:
        """Ids after which a model says what stands between two texts.

        Args:
            prefix: what stands before it.
            suffix: what stands after it.
            suffix_first: show the suffix before the prefix; the prefix is then simply continued.

        Raises:
            TokenizerError: the vocabulary has no tokens for this.
        """
        raise TokenizerError(
            "infill: this tokenizer has no tokens for infilling; must be of a model that was "
            "trained to fill in; use one, or give it the beginning alone"
        )

    def decode_infill(self, ids: Any) -> str:
        """Text of what a model said after such a prompt, up to the token that ends it."""
        raise NotImplementedError
