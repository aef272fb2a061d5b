"""Ctrl-C and SIGTERM ask for a stop at the end of the step; a second one ends the process at once.

Signals that follow within a second are the same request: `timeout` and others signal a process and
then its group.

Python runs signal handlers only between two bytecodes, and a training step is one call that lasts
seconds (its compilation longer). So a thread reads the signals from a pipe that the C level of the
interpreter writes to, says at once what will happen, and ends the process when asked twice.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from lm_core.log import get_logger

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0
"""Seconds."""


class StopRequest:
    """Whether somebody asked to stop. A context manager; outside the main thread it does nothing.

    Attributes:
        number: the signal, 0 while there was none.
    """

    def __init__(self, promise: str = "stopping after this step") -> None:
        self.promise = promise
        self.number = 0
        self._said = 0.0  # when
        self._wakeup = -1
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pipe is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._pipe[1], b"\0")
        if self._thread is not None:
            self._thread.join()
        for end in self._pipe:
            os.close(end)
        self._pipe = None

    def renew(self) -> None:
        """After a graph was compiled, where MindSpore takes SIGINT for itself and sends SIGTERM."""
        if self._pipe is not None:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    def _watch(self) -> None:
        assert self._pipe is not None
        while True:
            number = os.read(self._pipe[0], 1)[0]
            if number == 0:
                return
            if number not in _SIGNALS:
                continue
            if self._said and time.monotonic() - self._said < _SAME:
                continue
            if self._said:
                get_logger(__name__).warning("asked to stop a second time: ending at once")
                os._exit(128 + number)
            self.number, self._said = number, time.monotonic()
            get_logger(__name__).warning(
                "%s: %s; once more ends it at once", signal.Signals(number).name, self.promise
            )
