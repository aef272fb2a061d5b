"""ChatGLM2's tokenizer: texts begin with `[gMASK] sop`; questions are asked in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_core.tokenizer.sentencepiece import SentencePieceTokenizer


class ChatGlm2Tokenizer(SentencePieceTokenizer):
    """Ids of ChatGLM2; five tokens stand behind the vocabulary, and no text has them."""

    tokenizer_class = "ChatGLM2Tokenizer"

    def __init__(self, model: bytes, **settings: Any) -> None:
        """Like `SentencePieceTokenizer`."""
        super().__init__(model, **settings)

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """A question as the next round of a conversation."""
        rounds = [*(history or []), (query, "")]
        return "\n\n".join(
            f"[Round {number}]\n\n问：{question}\n\n答：{answer}"
            for number, (question, answer) in enumerate(rounds, 1)
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation."""
        raise NotImplementedError
