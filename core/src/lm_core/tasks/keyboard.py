"""Messages from a terminal or a pipe, and Ctrl-C that ends an answer but not the program.

While a graph runs MindSpore has a handler for SIGINT of its own, which sends SIGTERM. So SIGINT is
blocked before MindSpore is loaded, as threads inherit that and any of them might get the signal;
between two tokens we look whether one is waiting. Only while a line is read it interrupts at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread, get_ident
from typing import Self

from lm_core.errors import GenerationError

QUOTES = '"""'
BEAT_SECONDS = 60.0
_INT = {signal.SIGINT}


class CtrlC:
    """SIGINT that waits until it is looked for. A context manager, for the main thread."""

    def __enter__(self) -> Self:
        self._handler = signal.getsignal(signal.SIGINT)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INT)
        return self

    def __exit__(self, *_: object) -> None:
        self.pressed()
        signal.signal(signal.SIGINT, self._handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed since it was asked for last."""
        if signal.SIGINT not in signal.sigpending():
            return False
        signal.sigwait(_INT)
        return True

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside, Ctrl-C raises KeyboardInterrupt at once; what came before is forgotten."""
        self.pressed()
        signal.signal(signal.SIGINT, self._handler)  # in the place of MindSpore's
        with _insisting():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INT)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, _INT)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, Ctrl-C raises KeyboardInterrupt between two steps of Python.

        It stays blocked, so threads that are started here block it as well.
        """
        ended = Event()

        def watch() -> None:
            while not ended.wait(0.05):
                if self.pressed():
                    interrupt_main()

        thread = Thread(target=watch, name="Ctrl-C", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _insisting() -> Iterator[None]:
    """Inside, a SIGINT that has no effect for 0.1 s is sent again.

    One that comes after `input` has shown its prompt and before it waits for a key is remembered,
    but wakes nobody.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended, main = Event(), get_ident()

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) != 0:
            if number == signal.SIGINT and not ended.wait(0.1):
                signal.pthread_kill(main, signal.SIGINT)

    thread = Thread(target=watch, name="SIGINT again", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


class Keyboard:
    """Messages of the user: single lines, or several between three quotation marks and three.

    Args:
        ctrl_c: interrupts the reading.
        beat: called every minute while nothing comes; the input is then read as from a pipe.

    Raises:
        GenerationError: there is no input.
    """

    def __init__(self, ctrl_c: CtrlC, beat: Callable[[], None] | None = None) -> None:
        self.ctrl_c, self.beat = ctrl_c, beat
        if sys.stdin is None:
            raise GenerationError("standard input: is closed; must hold messages; leave it open")
        self.terminal = beat is None and sys.stdin.isatty() and sys.stdout.isatty()
        self._left = b""
        for stream in (sys.stdin, sys.stdout):
            with suppress(AttributeError):  # one that a program put there
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        if self.terminal:
            with suppress(ImportError):
                import readline  # noqa: F401  gives `input` a history and an editor

    def message(self) -> tuple[str, bool] | None:
        """The next message and whether it was quoted; None at the end of the input or Ctrl-C.

        Raises:
            GenerationError: the input ends in the middle of a quoted message.
        """
        try:
            with self.ctrl_c.allowed():
                return self._message()
        except (EOFError, KeyboardInterrupt):
            if self.terminal:
                print()
            return None

    def _message(self) -> tuple[str, bool]:
        line = self._line(">>> ").strip()
        if not line.startswith(QUOTES):
            return line, False
        try:
            return self._quoted(line.removeprefix(QUOTES)), True
        except EOFError:
            raise GenerationError(
                f"message: the input ends inside {QUOTES}; must end with {QUOTES}; add it"
            ) from None

    def _quoted(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip()

    def _line(self, prompt: str) -> str:
        if self.terminal:
            return input(prompt)
        while b"\n" not in self._left:
            seconds = BEAT_SECONDS if self.beat else None
            if self.beat and not select.select([sys.stdin], [], [], seconds)[0]:
                self.beat()
                continue
            block = os.read(sys.stdin.fileno(), 1 << 16)
            if not block and not self._left:
                raise EOFError
            self._left += block or b"\n"
        line, _, self._left = self._left.partition(b"\n")
        return line.decode("utf-8", "replace")
