"""From a request to the answers that the engine computes, and to their pieces as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_core.errors import LmError
from lm_core.generation.config import GenerationConfig
from lm_core.generation.prompts import fit, read_prompts
from lm_core.generation.sampling import streams
from lm_core.serving.engine import Answer, Busy, Closing, Engine
from lm_core.serving.errors import ApiError, closed, ended
from lm_core.serving.protocol import Asked, ChatAsked, CompletionAsked
from lm_core.serving.replies import Chat, Completion, Usage
from lm_core.serving.text import AnswerText, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may cost.

    Attributes:
        new_tokens: most tokens of an answer; None: as many as fit.
        body: bytes of a request.
        seconds: from the request to the end of its answer.
    """

    new_tokens: int | None = None
    body: int = 1 << 20
    seconds: float = 600.0


class Call:
    """A request that the engine has, and what comes of it.

    Args:
        reply: how it is told.
        usage: counts as it goes on.
        pieces: filled by the engine's thread.
        deadline: of the event loop's clock.
    """

    def __init__(
        self, reply: Completion, usage: Usage, pieces: asyncio.Queue[Piece], deadline: float
    ) -> None:
        self.reply, self.usage, self.deadline = reply, usage, deadline
        self.answers: list[Answer] = []
        self._pieces = pieces

    async def pieces(self) -> AsyncGenerator[Piece]:
        """All pieces of all answers, each as soon as it is there.

        Raises:
            ApiError: an answer could not be computed, or it took too long.
        """
        left = len(self.answers)
        while left:
            piece = await self._next()
            fault = ended(piece.reason)
            if fault is not None:
                raise fault
            self.usage.answers[piece.choice] = piece.count
            left -= bool(piece.reason)
            yield piece

    async def _next(self) -> Piece:
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._pieces.get()
        except TimeoutError:
            raise ApiError(
                504,
                "timeout: the answer took too long; must be shorter; lower max_tokens",
                "timeout",
            ) from None


class Service:
    """A model that answers calls.

    Args:
        engine: computes.
        tokenizer: of the model.
        config: of the model.
        own: settings where a request says nothing; `max_length` is the room of a row.
        name: what clients call the model.
        limits: of requests.
        chats: the tokenizer has a chat format.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        config: Any,
        own: GenerationConfig,
        name: str,
        limits: Limits,
        chats: bool,
    ) -> None:
        self.engine, self.tokenizer, self.config = engine, tokenizer, config
        self.own, self.name, self.limits, self.chats = own, name, limits, chats
        self.room = own.max_length or config.seq_length
        self.created = int(time.time())
        # Encoding may take long, and tokenizers are not made for several threads.
        self._encoder = ThreadPoolExecutor(1, "lm-encoder")

    async def open(self, asked: Asked) -> Call:
        """Queues a request.

        Raises:
            ApiError: it cannot be met, or not now.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.seconds
        try:
            settings = asked.settings(self.own, self.limits.new_tokens)
            prompts = await loop.run_in_executor(self._encoder, self._encode, asked)
            rows, limits = fit(prompts, settings, self.room)
        except LmError as error:
            raise ApiError.of(error) from None
        queue: asyncio.Queue[Piece] = asyncio.Queue()

        def deliver(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it everybody who waits
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        chat = isinstance(asked, ChatAsked)
        reply = (Chat if chat else Completion)(self.name, self.tokenizer)
        call = Call(reply, Usage(sum(map(len, rows))), queue, deadline)
        copies = asked.n or 1
        rows = [row for row in rows for _ in range(copies)]
        random = streams(rows, settings.seed) if settings.do_sample else [None] * len(rows)
        for choice, row in enumerate(rows):
            reader = AnswerText(self.tokenizer, deliver, choice, asked.stops, strip=chat)
            limit = int(limits[choice // copies])
            call.answers.append(Answer(row, limit, settings, reader, random[choice], asked.best))
        self._submit(call.answers)
        return call

    def close(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        self.engine.cancel(call.answers)

    def _submit(self, answers: Sequence[Answer]) -> None:
        most = self.engine.max_queue
        if len(answers) > most:
            raise ApiError(
                400, f"n: makes {len(answers)} answers; must be at most {most}; lower it"
            )
        try:
            self.engine.submit(answers)
        except Busy:
            raise ApiError(
                429, "server: too many requests are waiting; try again later", "queue_full", 1
            ) from None
        except Closing:
            raise closed() from None

    def _encode(self, asked: Asked) -> list[np.ndarray]:
        """The ids of each prompt, which leave room for an answer."""
        if isinstance(asked, ChatAsked):
            messages = [message.model_dump() for message in asked.messages]
            given = [self.tokenizer.apply_chat_template(messages)]
        else:
            assert isinstance(asked, CompletionAsked)
            given = [self._ids(prompt) for prompt in asked.prompts]
        config = self.config
        bos = config.bos_token_id
        rows = read_prompts(given, None, vocab_size=config.vocab_size, bos=bos, pad=None)
        for number, row in enumerate(rows):
            if len(row) >= self.room:
                where = "messages" if isinstance(asked, ChatAsked) else f"prompt[{number}]"
                raise ApiError(
                    400,
                    f"{where}: has {len(row)} tokens; must have at most {self.room - 1} to leave "
                    f"room for an answer; shorten it",
                    "context_length_exceeded",
                )
        return rows

    def _ids(self, prompt: str | list[int]) -> list[int]:
        return self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
