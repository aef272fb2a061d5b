"""The process between the host and the namespaces: it watches time and memory, and ends all.

Started as a bare interpreter (no site, no environment), because only a process with one thread can
enter a user namespace, and because what it forks must hold nothing of the host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lm_core.sandbox import judge, linux
from lm_core.sandbox.jail import Limits, enter, needed

_PAUSE = 0.02
_START = 30.0
"""Seconds for setting up, which a busy machine may need."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main(parent: int) -> None:
    """Reads limits and a task, a line of JSON each, from stdin; writes what was found to stdout.

    Args:
        parent: id of the process that started this one.
    """
    linux.die_with_parent()
    if os.getppid() != parent:
        return
    os.environ.clear()
    # Not one byte more than the limits may be read before the program's process has been forked.
    limits = Limits(**json.loads(_first_line()))
    try:
        found = _Watched.start(limits).result()
    except linux.RefusalError as error:
        found = {"refused": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(0, 1)
        if not got:
            raise EOFError
        line += got
    return line


class _Watched:
    """The judge, and below it the program."""

    def __init__(self, limits: Limits, process: int, requests: int, reports: int) -> None:
        self.limits, self.process = limits, process
        self.requests, self.reports = requests, reports
        self.read, self.over = b"", False

    @classmethod
    def start(cls, limits: Limits) -> _Watched:
        enter()
        folders = needed()
        to_read, to_ask = os.pipe()
        to_hear, to_report = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                linux.die_with_parent()
                null = os.open("/dev/null", os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                for descriptor in (null, to_ask, to_hear):
                    os.close(descriptor)
                judge.main(to_read, to_report, folders, limits)
            finally:
                os._exit(1)
        os.close(to_read)
        os.close(to_report)
        if not Path(f"/proc/{process}/task/{process}/children").exists():
            raise linux.refuse("a view of its processes", "no /proc/PID/task/PID/children")
        return cls(limits, process, to_ask, to_hear)

    def result(self) -> dict[str, Any]:
        """What the judge found, or why it was ended; nothing of it runs any more."""
        try:
            said = self._line(time.monotonic() + _START)
            if "ready" not in said:
                return said if "refused" in said else {"refused": _no_start(said)}
            task = sys.stdin.buffer.readline()
            if not task.endswith(b"\n"):
                raise EOFError
            with open(self.requests, "wb") as stream:
                stream.write(task)
            return self._line(time.monotonic() + self.limits.wall_seconds)
        finally:
            if not self.over:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)

    def _line(self, deadline: float) -> dict[str, Any]:
        """The judge's next line; looks after the limits until it comes."""
        while b"\n" not in self.read:
            left = deadline - time.monotonic()
            if left <= 0:
                return {"result": judge.TIMED_OUT}
            ready = select.select([self.reports], [], [], min(left, _PAUSE))[0]
            if ready:
                got = os.read(self.reports, 65536)
                if not got:
                    return {"result": self._ended()}
                self.read += got
            elif _resident(self.process) > self.limits.memory:
                return {"result": "failed: more memory than allowed"}
        line, _, self.read = self.read.partition(b"\n")
        return json.loads(line)

    def _ended(self) -> str:
        """The judge ended without a word: the kernel's limit of time, or a test that exits."""
        self.over = True
        status = os.waitpid(self.process, 0)[1]
        return judge.TIMED_OUT if judge.killed(status) else "failed: the test ended"


def _no_start(said: dict[str, Any]) -> str:
    return str(linux.refuse("a process within its limits", f"{said.get('result')} while starting"))


def _resident(process: int) -> int:
    """Bytes in memory of a process and all below it."""
    total, found = 0, [process]
    while found:
        folder = Path(f"/proc/{found.pop()}")
        try:
            total += int((folder / "statm").read_text().split()[1]) * _PAGE
            for thread in (folder / "task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except (OSError, IndexError):
            continue  # it has just ended
    return total
