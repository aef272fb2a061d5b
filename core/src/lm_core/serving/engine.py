"""One thread that computes all answers together, a token of each in turn.

Requests come and go between two steps: one that is waiting gets a row as soon as one is free, at
most one between two steps, so that running answers never wait for more than one prompt. Each has
its own settings, random stream and position, so its tokens are those of `generate` for it alone.

Nothing here knows of text or of HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Protocol

import numpy as np

from lm_core.errors import GenerationError, LmError
from lm_core.generation.config import GenerationConfig
from lm_core.generation.generate import Chooser, Rows, chooser
from lm_core.generation.sampling import check_finite, top_ids
from lm_core.log import get_logger


class Busy(Exception):  # noqa: N818
    """More requests are waiting than are allowed to."""


class Closing(Exception):  # noqa: N818
    """No request is taken any more."""


class Places(Protocol):
    """What computes; see `lm_core.generation.slots.Slots`."""

    @property
    def free(self) -> int: ...
    def compile(self) -> Iterable[None]: ...
    def open(self, prompt: np.ndarray) -> tuple[int, np.ndarray]: ...
    def step(self, fed: Mapping[int, tuple[int, int]], greedy: bool) -> dict[int, np.ndarray]: ...
    def close(self, row: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Chances:
    """Natural logarithms of probabilities of a token, of the model itself: before any setting.

    Attributes:
        own: of the token that was chosen.
        best: (id, logarithm) of the most likely ones.
    """

    own: float
    best: list[tuple[int, float]]


class Reader(Protocol):
    """Receives an answer; called by the engine's thread, so it must be quick."""

    def token(self, token: int, chances: Chances | None) -> bool:
        """Takes a token that does not end the answer by itself; whether the answer is whole."""
        ...

    def end(self, reason: str) -> None:
        """There is nothing more: "stop", "length", "cancelled", "closed", or "error: ..."."""
        ...


@dataclass(slots=True, eq=False)
class Answer:
    """A prompt and what becomes of it.

    Attributes:
        prompt: int32 [S].
        limit: tokens of prompt and answer, above S.
        settings: complete, see `GenerationConfig.completed`.
        reader: receives the answer.
        stream: draws, where `settings` sample.
        best: give the chances of each token, with so many of the most likely ones; None: do not.
        cancelled: nobody waits for it any more.
    """

    prompt: np.ndarray
    limit: int
    settings: GenerationConfig
    reader: Reader
    stream: np.random.Generator | None = None
    best: int | None = None
    cancelled: bool = False
    _rows: Rows = field(init=False)
    _choose: Chooser | None = field(init=False)

    def __post_init__(self) -> None:
        streams = [] if self.stream is None else [self.stream]
        self._rows = Rows([self.prompt], np.array([self.limit]), self.settings.eos_ids)
        self._choose = chooser(self.settings, streams)

    @property
    def needs_logits(self) -> bool:
        """Whether the most likely token alone does not do."""
        return self._choose is not None or self.best is not None

    @property
    def last(self) -> tuple[int, int]:
        """The newest token and its position."""
        return int(self._rows.last[0]), int(self._rows.lengths[0]) - 1

    def take(self, found: np.ndarray) -> str:
        """Adds a token.

        Args:
            found: float32 logits [V], or the token itself, int32 [].

        Returns:
            why the answer ends here; "" while it does not.
        """
        token = self._next(found)
        more = self._rows.append(np.array([token], np.int32))
        if token in self.settings.eos_ids:
            return "stop"
        chances = None if self.best is None else chances_of(found, token, self.best)
        whole = self.reader.token(token, chances)
        return "stop" if whole else "" if more else "length"

    def _next(self, found: np.ndarray) -> int:
        if not found.ndim:
            return int(found)
        if self._choose is None:
            return int(found.argmax())
        return int(self._choose(found[None], self._rows)[0])


def chances_of(logits: np.ndarray, token: int, count: int) -> Chances:
    """What the logits [V] say of a token and of the `count` most likely ones."""
    shifted = (logits - logits.max()).astype(np.float64)
    found = shifted - np.log(np.exp(shifted).sum())
    best = top_ids(logits, count) if count else []
    return Chances(float(found[token]), [(int(index), float(found[index])) for index in best])


class Engine:
    """Computes answers.

    Args:
        places: rows that requests are computed in; from `start` on this thread's alone.
        max_queue: most requests that may wait for a row.
    """

    def __init__(self, places: Places, max_queue: int) -> None:
        self.places, self.max_queue = places, max_queue
        self._waiting: deque[Answer] = deque()
        self._running: dict[int, Answer] = {}
        self._changed = Condition()
        self._open, self._stopping = False, False
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="lm-engine", daemon=True)

    def start(self) -> None:
        """Compiles and begins to take requests.

        Raises:
            Exception: what compiling raised.
        """
        self._thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._failure is not None)
        except BaseException:
            self.close()  # a process that ends while a thread compiles is aborted
            raise
        if self._failure is not None:
            raise self._failure

    def submit(self, answers: Sequence[Answer]) -> None:
        """Queues requests, all of them or none.

        Raises:
            Busy: so many would wait that are not allowed to.
            Closing: no request is taken any more.
        """
        with self._changed:
            if not self._open:
                raise Closing
            if len(self._waiting) + len(answers) > self.max_queue:
                raise Busy
            self._waiting.extend(answers)
            self._changed.notify_all()

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Forgets requests, done or not: their rows are free after the step that is being made."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._changed.notify_all()

    @property
    def open(self) -> bool:
        """Whether requests are taken."""
        return self._open

    @property
    def load(self) -> tuple[int, int]:
        """How many requests are computed, and how many wait."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def drain(self) -> None:
        """Takes no more requests; those that are here go on."""
        with self._changed:
            self._open = False

    def wait_idle(self, timeout: float) -> bool:
        """Whether all requests are done within so many seconds."""

        def idle() -> bool:
            return not self._running and not self._waiting

        with self._changed:
            return self._changed.wait_for(idle, timeout)

    def stop(self) -> None:
        """Ends all requests, and the thread, after the step that is being made."""
        with self._changed:
            self._open, self._stopping = False, True
            self._changed.notify_all()

    def close(self) -> None:
        """As `stop`, and waits for it."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            for _ in self.places.compile():
                if self._stopping:
                    return
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            self._open = not self._stopping
            self._changed.notify_all()
        try:
            while self._wait():
                self._admit()
                self._step()
                self._notify()
            self._end_all()
        except Exception as error:
            get_logger(__name__).error("the engine has failed; start it again", exc_info=error)
            self._open = False
            self._end_all()

    def _wait(self) -> bool:
        """Waits for something to do; False when there will be nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._stopping)
            gone = [answer for answer in self._waiting if answer.cancelled]
            for answer in gone:
                self._waiting.remove(answer)
            stopping = self._stopping
        for answer in gone:
            _end(answer, "cancelled")
        for row, answer in list(self._running.items()):
            if answer.cancelled:
                self._finish(row, "cancelled")
        return not stopping

    def _admit(self) -> None:
        """Computes the first prompt that waits, if there is a row for it."""
        if not self.places.free:
            return
        with self._changed:
            if not self._waiting:
                return
            answer = self._waiting[0]
        row = None
        try:
            row, logits = self._place(answer)
            check_finite(logits.max())
            self._take(row, logits)
        except Exception as error:
            self._failed(row, answer, error)

    def _place(self, answer: Answer) -> tuple[int, np.ndarray]:
        """Moves the first of the queue to a row: it counts as one or the other, never as both."""
        row = None
        try:
            row, logits = self.places.open(answer.prompt)
            return row, logits
        finally:
            with self._changed:
                self._waiting.popleft()
                if row is not None:
                    self._running[row] = answer

    def _step(self) -> None:
        """A token for each running request."""
        if not self._running:
            return
        fed = {row: answer.last for row, answer in self._running.items()}
        greedy = not any(answer.needs_logits for answer in self._running.values())
        try:
            found = self.places.step(fed, greedy)
        except Exception as error:
            for row, answer in list(self._running.items()):
                self._failed(row, answer, error)
            return
        for row, answer in list(self._running.items()):
            try:
                self._take(row, found[row])
            except Exception as error:
                self._failed(row, answer, error)

    def _take(self, row: int, found: np.ndarray) -> None:
        reason = self._running[row].take(found)
        if reason:
            self._finish(row, reason)

    def _finish(self, row: int, reason: str) -> None:
        answer = self._running.pop(row)
        try:
            self.places.close(row)
        finally:
            _end(answer, reason)

    def _failed(self, row: int | None, answer: Answer, error: Exception) -> None:
        """This answer cannot be had; what a user cannot mend is told to whoever runs the server."""
        if not isinstance(error, LmError):
            get_logger(__name__).error("an answer could not be computed", exc_info=error)
        text = str(error) if isinstance(error, GenerationError) else "it could not be computed"
        if row is not None and self._running.pop(row, None) is not None:
            self.places.close(row)
        _end(answer, f"error: {text}")

    def _end_all(self) -> None:
        with self._changed:
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for answer in left:
            _end(answer, "closed")
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _end(answer: Answer, reason: str) -> None:
    """Tells the reader, whose own trouble must not be that of the others."""
    try:
        answer.reader.end(reason)
    except Exception as error:
        get_logger(__name__).error("the end of an answer could not be told", exc_info=error)
        with suppress(Exception):
            answer.reader.end("error: it could not be told")
