"""An answer of the serving engine, kept for tests."""

from __future__ import annotations

import threading


class Kept:
    """Keeps an answer; may ask for its end after some tokens."""

    def __init__(self, most: int = 1000) -> None:
        self.tokens, self.chances, self.reason, self.most = [], [], "", most
        self.done = threading.Event()

    def token(self, token, chances):
        self.tokens.append(token)
        self.chances.append(chances)
        return len(self.tokens) >= self.most

    def end(self, reason):
        self.reason = reason
        self.done.set()

    def wait(self):
        assert self.done.wait(60)
        return self.tokens
