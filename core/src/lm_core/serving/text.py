"""From the tokens of an answer to its text, as it comes; where a stop sequence ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_core.generation.streamer import TextPieces
from lm_core.serving.engine import Chances


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer with its chances.

    Attributes:
        id: of the token.
        offset: characters of the answer before it.
    """

    id: int
    offset: int
    chances: Chances


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of an answer.

    Attributes:
        choice: which of the answers of a call.
        text: may be empty.
        tokens: those that are new, where chances were asked for.
        reason: why the answer ends here, as of `Reader.end`; "" while it goes on.
        count: tokens of the answer so far.
    """

    choice: int
    text: str
    tokens: tuple[Token, ...]
    reason: str
    count: int


class AnswerText:
    """Reads an answer for the engine and delivers it in pieces.

    Args:
        tokenizer: turns ids into text.
        deliver: is given each piece; called by the engine's thread.
        choice: which of the answers of a call this is.
        stops: texts that end the answer and are no part of it.
        strip: leave out white space that the answer begins with.
    """

    def __init__(
        self,
        tokenizer: Any,
        deliver: Callable[[Piece], None],
        choice: int = 0,
        stops: Sequence[str] = (),
        strip: bool = False,
    ) -> None:
        self._pieces = TextPieces(tokenizer)
        self._deliver, self._choice, self._stops, self._strip = deliver, choice, stops, strip
        self._held, self._length, self._count = "", 0, 0
        self._tokens: list[Token] = []
        self._stopped = False

    def token(self, token: int, chances: Chances | None) -> bool:
        """Takes a token; whether a stop sequence has come."""
        self._count += 1
        if chances is not None:
            self._tokens.append(Token(token, self._length + len(self._held), chances))
        self._read(self._pieces.push([token]), whole=False)
        return self._stopped

    def end(self, reason: str) -> None:
        """Delivers what was held back, and why the answer ends."""
        if reason == "stop" and not self._stopped:
            self._count += 1  # the token that ended it
        if not self._stopped and reason in ("stop", "length"):
            self._read(self._pieces.flush(), whole=True)
        if self._stopped and reason == "length":
            reason = "stop"
        self._send("", reason)

    def _read(self, new: str, whole: bool) -> None:
        """Sends what no stop sequence can begin in any more."""
        if self._strip and not self._length:
            self._held = (self._held + new).lstrip()
        else:
            self._held += new
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self._stopped = True
            certain = min(found)
        else:
            certain = len(self._held) - (0 if whole else self._begun())
        text, self._held = self._held[:certain], self._held[certain:]
        if text or self._tokens:
            self._send(text, "")

    def _begun(self) -> int:
        """Characters at the end of what is held that a stop sequence may begin with."""
        most = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for size in range(most, 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _send(self, text: str, reason: str) -> None:
        tokens, self._tokens = tuple(self._tokens), []
        self._length += len(text)
        self._deliver(Piece(self._choice, text, tokens, reason, self._count))
