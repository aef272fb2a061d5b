"""Watches over the processes of a job: a death, a hang or a signal ends all of them, or restarts.

The first process that fails decides: its peers wait for it in a collective and would do so for
ever, or fail a moment later with a message that is only a consequence.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from pathlib import Path
from types import FrameType
from typing import Self

from lm_core.launch import commands
from lm_core.launch.job import INTERACTIVE, TRAINING, Job, check_port, free_port, resolve
from lm_core.launch.processes import (
    TERM_SECONDS,
    Guard,
    Process,
    Screen,
    errors,
    kill_all,
    wait,
)
from lm_core.log import clock, get_logger, write_line

_LOG = get_logger(__name__)
_INTERVAL = 0.05
_TWICE_SECONDS = 0.5
_SCHEDULER_SECONDS = 10.0
_INTERACTIVE_SECONDS = 1.0
_HINTS: dict[int, str] = {
    signal.SIGKILL: " (often for want of memory)",
    signal.SIGTERM: " (MindSpore ends itself so when it loses a process, maybe of another machine)",
}
USER_ERROR = 2
"""The exit status of our commands for what only the user can mend: trying again is no use."""


def run(job: Job) -> int:
    """Runs this machine's part of a job to its end; the exit status."""
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    address = resolve(job.address) if job.size > 1 else job.address
    with Guard(mark), Signals() as signals:
        for attempt in range(job.restarts + 1):
            end = Attempt(job, address, mark, signals, attempt).run()
            if end.final or attempt == job.restarts or signals.first:
                break
            again = f"restart {attempt + 1} of {job.restarts}, from the newest checkpoint"
            _tell(WARNING, again)
    return 128 + signals.first if signals.first else end.status


class Signals:
    """What the user wants. SIGHUP where it is ignored (nohup) stays so. A context manager."""

    def __init__(self) -> None:
        self.first = 0
        self.at_once = False
        self._when = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A terminal that closes and shells between us say everything twice, in an instant.
        if self.first and number != signal.SIGHUP and now - self._when > _TWICE_SECONDS:
            self.at_once = True
        if not self.first:
            self.first, self._when = number, now


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt went. `final`: starting again would not help."""

    status: int
    final: bool = False


class Attempt:
    """The processes of one start."""

    def __init__(self, job: Job, address: str, mark: str, signals: Signals, number: int) -> None:
        self.job, self.mark, self.signals, self.number = job, mark, signals, number
        self.address = address
        self.scheduler: Process | None = None
        self.workers: dict[int, Process] = {}
        self.screen: Screen | None = None
        self._started = time.monotonic()
        self._life: dict[int, tuple[int, float]] = {}
        self._looked = 0.0

    def run(self) -> End:
        """Starts the processes, and returns when none is left."""
        try:
            self._start()
            return self._watch()
        finally:
            self._end()

    def _start(self) -> None:
        job = self.job
        # Another one for each start, the same on all machines: the scheduler of the last start may
        # live on for a while where the loss was not noticed yet, and would refuse known ranks.
        port = job.port + self.number if job.port else free_port()
        if job.port and job.machine == 0 and job.size > 1:
            check_port(port)
        if job.size > 1 and job.machine == 0:
            command, environment = commands.scheduler(job, self.address, port, self.mark)
            self.scheduler = self._process(
                "the scheduler", command, environment, job.logs / "scheduler.log"
            )
        command = commands.verb(job, again=self.number > 0)
        for rank in job.ranks:
            environment = commands.worker_environment(job, rank, self.address, port, self.mark)
            job.log(rank).parent.joinpath("heartbeat").unlink(missing_ok=True)
            self.workers[rank] = self._process(f"rank {rank}", command, environment, job.log(rank))
        self.screen = Screen(self.workers[job.ranks.start])
        where = job.logs / "rank_*" / "launch.log"
        ranks = f"ranks {job.ranks.start} to {job.ranks.stop - 1} of {job.size}"
        _tell(INFO, f"{job.model} {job.verb}: {ranks}; what they say is in {where}")

    def _process(
        self, name: str, command: list[str], environment: dict[str, str], log: Path
    ) -> Process:
        reads = name == "rank 0" and self.job.verb in INTERACTIVE
        return Process(name, command, environment, log, self._title(name), reads)

    def _title(self, name: str) -> str:
        again = f", restart {self.number} of {self.job.restarts}" if self.number else ""
        return f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {name} of {self.job.size} starts{again}"

    def _all(self) -> list[Process]:
        return [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]

    def _end(self) -> None:
        left = kill_all(self._all(), self.mark)
        if self.screen:
            self.screen.close()
        if left:
            numbers = ", ".join(map(str, left))
            _tell(ERROR, f"processes {numbers} do not end; look at them with ps")

    def _show(self, last: bool = False) -> list[str]:
        """What rank 0 writes is on the screen as well; returns the errors shown there."""
        return self.screen.show(last) if self.screen else []

    def _watch(self) -> End:
        while True:
            self._show()
            if self.signals.first:
                return self._stop()
            failed = self._failed()
            if failed is not None:
                return self._after(failed)
            if all(worker.status == 0 for worker in self.workers.values()):
                self._wait_for_machines()
                return End(0, final=True)
            hung = self._hung()
            if hung is not None:
                return self._after_hang(hung)
            time.sleep(_INTERVAL)

    def _wait_for_machines(self) -> None:
        """Workers of other machines still take their leave of the scheduler; it ends after them."""
        if self.scheduler and self.job.machines > 1:
            wait([self.scheduler], _SCHEDULER_SECONDS)

    def _failed(self) -> Process | None:
        """The process that failed; of several in one instant one that a signal ended, as a cause.

        The scheduler fails when a worker does, so it is asked last.
        """
        failed = [worker for worker in self.workers.values() if worker.status]
        if not failed and self.scheduler and self.scheduler.status:
            wait(self.workers.values(), 1.0)
            failed = [worker for worker in self.workers.values() if worker.status]
            failed = failed or [self.scheduler]
        return min(failed, key=lambda process: (process.status or 0) > 0) if failed else None

    def _after(self, failed: Process) -> End:
        status = failed.status or 1
        if status == USER_ERROR and self._refused(failed):
            return End(USER_ERROR, final=True)
        self._ask_all(TERM_SECONDS)
        self._show(last=True)
        self._report(failed, f"{_spell(status)} after {clock(time.monotonic() - self._started)}")
        return End(status if status > 0 else 128 - status, final=status == USER_ERROR)

    def _refused(self, failed: Process) -> bool:
        """Shows once what every rank says when the user's input is wrong; whether any said it."""
        lines = errors(failed.last_lines(100))
        wait(self.workers.values(), 2.0)
        shown = self._show(last=True)
        _tell(ERROR, "", [text for text in lines if text not in shown])
        return bool(lines)

    def _report(self, failed: Process, what: str) -> None:
        """One line, and the last ones of the process, unless they are on the screen already."""
        others = ""
        if failed is self.scheduler and self.job.machines > 1:
            others = ", which it does when a process of another machine is lost"
        is_shown = failed is self.workers[self.job.ranks.start]
        lines = [] if is_shown else [f"    {text}" for text in failed.last_lines()]
        _tell(ERROR, f"{failed.name} {what}{others}; the job is ended; see {failed.log}", lines)

    def _hung(self) -> int | None:
        """The rank that has shown no life for the longest time, when that is too long."""
        job = self.job
        if not job.hang_seconds or job.verb not in TRAINING:
            return None
        now, late = time.monotonic(), []
        if now - self._looked < min(1.0, job.hang_seconds / 4):
            return None
        self._looked = now
        for rank, worker in self.workers.items():
            if worker.status is None and (silent := now - self._alive(rank, now)) > 0:
                limit = job.hang_seconds
                if self._life[rank][0] == 0:
                    limit = max(limit, job.start_seconds)
                late += [(silent, -rank)] if silent > limit else []
        return -max(late)[1] if late else None

    def _alive(self, rank: int, now: float) -> float:
        """When a heartbeat was seen last, by our clock: that of the file may be another's."""
        try:
            stamp = (self.job.log(rank).parent / "heartbeat").stat().st_mtime_ns
        except OSError:
            stamp = 0
        before, when = self._life.get(rank, (0, self._started))
        if stamp != before and stamp:
            before, when = stamp, now
        self._life[rank] = (before, when)
        return when

    def _after_hang(self, rank: int) -> End:
        silent = time.monotonic() - self._life[rank][1]
        self._ask_all(TERM_SECONDS)
        self._show(last=True)
        self._report(self.workers[rank], f"hangs: it has shown no life for {clock(silent)}")
        return End(1)

    def _stop(self) -> End:
        """Lets the workers save their state; they stop at the end of the step."""
        name = signal.Signals(self.signals.first).name
        if self.job.verb in INTERACTIVE:
            # The others wait in an exchange with rank 0, where nobody can be asked to end.
            _tell(INFO, f"{name}: the conversation ends")
            self._ask_all(_INTERACTIVE_SECONDS)
            return End(128 + self.signals.first, final=True)
        given = f"the workers have {self.job.stop_seconds:g} s to save their state"
        _tell(WARNING, f"{name}: {given}; once more ends them at once")
        if not self._ask_all(self.job.stop_seconds):
            _tell(WARNING, "ending the workers that are left")
        return End(128 + self.signals.first, final=True)

    def _ask_all(self, seconds: float) -> bool:
        """Asks the workers to end; whether they did, before the time was over or the user's was."""
        for worker in self.workers.values():
            worker.ask()
        end = time.monotonic() + seconds
        while not wait(self.workers.values(), 0):
            self._show()
            if self.signals.at_once or time.monotonic() > end:
                return False
            time.sleep(_INTERVAL)
        return True


def _tell(level: int, text: str, lines: Sequence[str] = ()) -> None:
    """Says something where somebody listens: a terminal may have closed, and the job goes on."""
    with suppress(OSError):
        if text:
            _LOG.log(level, "%s", text)
        for shown in lines:
            write_line(shown)


def _spell(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}{_HINTS.get(-status, '')}"
