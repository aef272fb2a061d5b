"""Shows an answer while it is generated, in whole characters.

A character may be spread over several tokens; decoding the first of them alone gives U+FFFD. Such
an end is held back until the next token completes it or shows that it is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from queue import Empty, Queue
from typing import Any, TextIO

import numpy as np

from lm_core.errors import GenerationError

REPLACEMENT = "\ufffd"
LONGEST_PENDING = 3
"""A UTF-8 character has at most 4 bytes: up to 3, shown as a U+FFFD each, wait for the last."""
WINDOW = 48
CONTEXT = 16
"""So many tokens at most are decoded again for a new one; a full window keeps its last few."""


class TextPieces:
    """Turns tokens into pieces of text that, joined, are the decoded whole.

    Args:
        tokenizer: anything with `decode(ids, skip_special_tokens=)`.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True) -> None:
        self.tokenizer, self.skip = tokenizer, skip_special_tokens
        self.window: list[int] = []
        self.shown = 0

    def push(self, tokens: Any) -> str:
        """The text that is certain now and was not before."""
        self.window.extend(int(token) for token in tokens)
        text = self._decode(self.window)
        run = len(text) - len(text.rstrip(REPLACEMENT))
        certain = max(len(text) - min(run, LONGEST_PENDING), self.shown)
        piece, self.shown = text[self.shown : certain], certain
        if len(self.window) > WINDOW:
            self.window = self.window[-CONTEXT:]
            self.shown = max(len(self._decode(self.window)) - (len(text) - certain), 0)
        return piece

    def flush(self) -> str:
        """What was held back; the next token begins a new text."""
        piece = self._decode(self.window)[self.shown :] if self.window else ""
        self.window, self.shown = [], 0
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=self.skip)


class TextStreamer:
    """Writes the text of one answer as it comes: `generate(ids, streamer=TextStreamer(tokenizer))`.

    Args:
        tokenizer: turns ids into text.
        skip_prompt: show the answer only.
        skip_special_tokens: leave special tokens out.
        stream: a text file; None for the standard output of the moment.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        skip_special_tokens: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.skip_prompt = skip_prompt
        self.stream = stream
        self._pieces = TextPieces(tokenizer, skip_special_tokens)
        self._at_prompt = True

    def put(self, tokens: Any) -> None:
        """Takes the prompt, then the new tokens; ids [S] or, of a batch of one, [1, S]."""
        tokens = np.asarray(tokens)
        if tokens.ndim > 1 and tokens.shape[0] > 1:
            raise GenerationError(
                f"streamer: got {tokens.shape[0]} rows; must be one; call generate once per prompt"
            )
        piece = self._pieces.push(tokens.reshape(-1))
        if self._at_prompt:
            self._at_prompt = False
            if self.skip_prompt:
                return
        if piece:
            self.on_text(piece)

    def end(self) -> None:
        """Shows what is left and gets ready for the next answer."""
        self._at_prompt = True
        self.on_text(self._pieces.flush(), end=True)

    def on_text(self, text: str, end: bool = False) -> None:
        """Shows a piece of text; a subclass may do something else with it."""
        stream = self.stream or sys.stdout
        stream.write(text + "\n" if end else text)
        stream.flush()


class TextIteratorStreamer(TextStreamer):
    """Hands out the pieces of an answer to another thread than the one that generates.

        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        Thread(target=model.generate, args=(ids,), kwargs={"streamer": streamer}).start()
        for piece in streamer: ...

    Args:
        tokenizer: turns ids into text.
        skip_prompt: give the answer only.
        timeout: seconds to wait for a piece; None for ever.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, skip_special_tokens)
        self.timeout = timeout
        self._queue: Queue[str | None] = Queue()

    def on_text(self, text: str, end: bool = False) -> None:
        """Queues a piece."""
        if text:
            self._queue.put(text)
        if end:
            self._queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            piece = self._queue.get(timeout=self.timeout)
        except Empty:
            raise TimeoutError(
                f"TextIteratorStreamer: no text for {self.timeout} s; raise timeout"
            ) from None
        if piece is None:
            raise StopIteration
        return piece
