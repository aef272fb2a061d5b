"""How answers look on the wire: OpenAI's objects, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_core.serving.text import Piece, Token

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass
class Usage:
    """Tokens of a call.

    Attributes:
        prompt: of all prompts.
        answers: of each answer so far.
    """

    prompt: int
    answers: dict[int, int] = field(default_factory=dict)

    def values(self) -> dict[str, int]:
        """As clients get it."""
        new = sum(self.answers.values())
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": new,
            "total_tokens": self.prompt + new,
        }


class Completion:
    """Replies of /v1/completions.

    Args:
        model: the name that clients know.
        tokenizer: spells tokens.
    """

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """The reply to a call whose answers are all there, the pieces of each in order."""
        choices = []
        for number, own in enumerate(pieces):
            tokens = [token for piece in own for token in piece.tokens]
            body = self._body("".join(piece.text for piece in own), tokens, asked=bool(tokens))
            choices.append({"index": number, **body, "finish_reason": own[-1].reason})
        return {**self._object(self.kind), "choices": choices, "usage": usage.values()}

    def begin(self, choices: int) -> list[dict[str, Any]]:
        """Chunks that come before all others."""
        return []

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A part of a reply."""
        body = self._delta(piece.text, list(piece.tokens))
        return self._chunk({"index": piece.choice, **body, "finish_reason": piece.reason or None})

    def end(self, usage: Usage) -> dict[str, Any]:
        """The last chunk, where usage was asked for."""
        return {**self._object(self.chunk_kind), "choices": [], "usage": usage.values()}

    def _object(self, kind: str) -> dict[str, Any]:
        return {**self._head, "object": kind}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._object(self.chunk_kind), "choices": [choice]}

    def _body(self, text: str, tokens: list[Token], asked: bool) -> dict[str, Any]:
        return {"text": text, "logprobs": self._logprobs(tokens) if asked else None}

    def _delta(self, text: str, tokens: list[Token]) -> dict[str, Any]:
        return self._body(text, tokens, bool(tokens))

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        return {
            "tokens": [self.spell(token.id) for token in tokens],
            "token_logprobs": [token.chances.own for token in tokens],
            "top_logprobs": [self._best(token) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _best(self, token: Token) -> dict[str, float]:
        """By spelling; of tokens that are spelt alike the likeliest."""
        found: dict[str, float] = {}
        for index, value in token.chances.best:
            found.setdefault(self.spell(index), value)
        return found

    def spell(self, index: int) -> str:
        """The text of a token; one that is no whole character shows its bytes, if it has a name."""
        text = self.tokenizer.decode([index])
        if REPLACEMENT not in text:
            return text
        return str(self.tokenizer.convert_ids_to_tokens(index) or text)


class Chat(Completion):
    """Replies of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def begin(self, choices: int) -> list[dict[str, Any]]:
        """Says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk({"index": n, "delta": delta, "logprobs": None, "finish_reason": None})
            for n in range(choices)
        ]

    def _body(self, text: str, tokens: list[Token], asked: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(tokens) if asked else None}

    def _delta(self, text: str, tokens: list[Token]) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"delta": delta, "logprobs": self._logprobs(tokens) if tokens else None}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        content = [
            {
                **self._spelt(token.id, token.chances.own),
                "top_logprobs": [self._spelt(*best) for best in token.chances.best],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _spelt(self, index: int, value: float) -> dict[str, Any]:
        text = self.spell(index)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}
