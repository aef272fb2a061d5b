"""The host's side: starts a sandbox for each program, several at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from lm_core.errors import SandboxError
from lm_core.sandbox.jail import Limits
from lm_core.sandbox.judge import PASSED

_MAIN = "import sys; sys.path.append(sys.argv[1]); from lm_core.sandbox import supervisor"
_MAIN += "; sys.path.pop(); supervisor.main(int(sys.argv[2]))"
_CODE = str(Path(__file__).parents[2])
_GRACE = 60.0
"""Seconds that a supervisor may take longer than the limits that it watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A program and its test.

    Attributes:
        program: source that defines the function `entry_point`.
        prompt: source of what the test may use beside it, trusted.
        test: source that defines `check(candidate)`, trusted.
        entry_point: name of the function.
    """

    program: str
    prompt: str
    test: str
    entry_point: str


def require() -> None:
    """Runs a program, to find out before hours of other work.

    Raises:
        SandboxError: this machine does not give the protection.
    """
    test = "def check(candidate):\n    assert candidate(2) == 4\n"
    task = Task(
        program="def double(x):\n    return 2 * x\n", prompt="", test=test, entry_point="double"
    )
    result = run(task, Limits(seconds=30, wall_seconds=60.0))
    if result != PASSED:
        raise SandboxError(
            f"sandbox: a program that is right does not pass here ({result}); must be run as any; "
            f"report it with the output of `lm doctor`"
        )


def run(task: Task, limits: Limits | None = None) -> str:
    """`passed`, `timed out`, or `failed: ` and why.

    Raises:
        SandboxError: this machine does not give the protection; nothing was run.
    """
    limits = limits or Limits()
    lines = "".join(json.dumps(asdict(part)) + "\n" for part in (limits, task))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _MAIN, _CODE, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(lines.encode(), limits.wall_seconds + _GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = b"", b"it did not end in time"
        except BaseException:
            process.kill()  # the kernel ends what it started
            raise
    return _result(out, errors, process.returncode)


def _result(out: bytes, errors: bytes, status: int) -> str:
    try:
        found = json.loads(out)
    except ValueError:
        last = (errors.decode(errors="replace").strip() or f"status {status}").splitlines()[-1]
        raise SandboxError(
            f"sandbox: its supervisor ended ({last}); must give a result; run it once more, and "
            f"check `lm doctor`"
        ) from None
    if "refused" in found:
        raise SandboxError(found["refused"])
    return str(found["result"])


def run_all(tasks: Iterable[Task], limits: Limits, workers: int) -> Iterator[str]:
    """The results in the order of the tasks, `workers` at once.

    Raises:
        SandboxError: as `run`.
    """
    todo = iter(tasks)
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[str]] = [
            pool.submit(run, task, limits) for task in islice(todo, 2 * workers)
        ]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(run, task, limits) for task in islice(todo, 1)]
        finally:
            for future in waiting:
                future.cancel()


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0))
