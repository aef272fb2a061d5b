"""Processes that write to a log file, what they wrote, and their end: none survives us.

Each process leads a session of its own, so a signal for its group reaches its children. Children
that left the group are found by a mark in their environment, which they inherit. A guard, forked
before anything is started, reads a pipe that nobody writes to; when we are gone, however that came,
the pipe ends and the guard ends what carries the mark. Where the guard is gone as well, Linux ends
the processes themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from lm_core.launch.commands import MARK

TERM_SECONDS = 5.0
"""Between asking and killing where there is nothing left to save."""
_KILL_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_NOISE = (b"[INFO] DISTRIBUTED(", b"[WARNING] DISTRIBUTED(")
"""How lines begin that MindSpore writes of its own connections, some whatever GLOG_v says."""


class Process:
    """One started process.

    Attributes:
        name: for messages.
        log: what it writes, after what its predecessors wrote.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        title: str,
        reads: bool = False,
    ) -> None:
        """Args: `reads` whether it has our standard input; another process has an empty one."""
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"---- {title} ----\n".encode())
            output.flush()
            self.start = output.tell()
            self.popen = subprocess.Popen(
                command,
                env=environment,
                stdin=None if reads else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Safe here: this program has one thread.
                preexec_fn=_bound_to_us(),
            )

    @property
    def status(self) -> int | None:
        """None while it runs, its exit status, or the negative number of the signal."""
        return self.popen.poll()

    def ask(self) -> None:
        """Asks it, and not its children, whom it may need to save its state, to end."""
        if self.status is None:
            self.popen.terminate()

    def kill_group(self) -> None:
        """Ends it and its group, also when it has ended and its children have not."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def last_lines(self, count: int = 20, size: int = 1 << 16) -> list[str]:
        """The end of what this process, not its predecessors, wrote."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self.start, end - size))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = (line.rstrip() for line in text.splitlines())
        return [line for line in lines if line and not _is_noise(line.encode())][-count:]


@cache
def _bound_to_us() -> Callable[[], object] | None:
    """What a child calls to be killed when its parent ends, where the system can do that."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait(processes: Iterable[Process], seconds: float) -> bool:
    """Whether all have ended before the time is over."""
    end = time.monotonic() + seconds
    left = list(processes)
    while left := [process for process in left if process.status is None]:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def kill_all(processes: Sequence[Process], mark: str) -> list[int]:
    """Ends the processes and all that came from them.

    Returns:
        Processes that are still there: those that wait for a device or a disk cannot be ended.
    """
    end = time.monotonic() + _KILL_SECONDS
    while True:
        for process in processes:
            process.kill_group()
        left = marked(mark)
        for number in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        waiting = [process for process in processes if process.status is None]
        if not (left or waiting) or time.monotonic() > end:
            return left
        time.sleep(0.02)


def marked(mark: str) -> list[int]:
    """The numbers of all processes that carry a mark, as far as Linux shows them."""
    wanted, found = f"\0{MARK}{mark}=".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in b"\0" + (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


class Guard:
    """A process that outlives us just long enough to end what we started. A context manager."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._pipe = -1
        self._number = 0

    def __enter__(self) -> Self:
        end, self._pipe = os.pipe()
        self._number = os.fork()
        if self._number == 0:
            self._watch(end)
        os.close(end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._pipe)
        os.waitpid(self._number, 0)

    def _watch(self, end: int) -> None:
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.close(self._pipe)
            os.read(end, 1)
            kill_all([], self._mark)
        finally:
            os._exit(0)


class Screen:
    """Copies what a process writes to our own output, whole lines as they come."""

    def __init__(self, process: Process) -> None:
        self._file = process.log.open("rb")
        self._file.seek(process.start)
        self._rest = b""
        self._errors: list[str] = []

    def show(self, last: bool = False) -> list[str]:
        """Writes what is new; at last an unfinished line as well. Returns all errors so far."""
        text = self._rest + self._file.read()
        cut = len(text) if last else max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        shown, self._rest = text[:cut], text[cut:]
        lines = shown.splitlines(keepends=True)
        shown = b"".join(line for line in lines if not _is_noise(line))
        if shown:
            self._errors += errors(shown.decode(errors="replace").splitlines())
            _write(shown)
        return self._errors

    def close(self) -> None:
        """Writes the rest."""
        self.show(last=True)
        self._file.close()


def _is_noise(line: bytes) -> bool:
    """Whether a line stays in the log, and is not shown."""
    return line.startswith(_NOISE)


def _write(text: bytes) -> None:
    """Whoever reads us may have gone; that is no reason to end a job of days."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def errors(lines: Iterable[str]) -> list[str]:
    """The lines that lm_core.cli writes for what a user can mend."""
    return [line for line in lines if "error: " in line]
