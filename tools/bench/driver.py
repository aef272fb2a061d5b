"""Contenders as processes of their own, one library each: JSON lines over pipes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
THREADS = 2


class ContenderError(RuntimeError):
    """A contender died, did not answer, or computed something else than the others."""


def environment() -> dict[str, str]:
    """The same number of threads for everybody, and no messages."""
    threads = str(THREADS)
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GLOG_v": "3",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


class Worker:
    """A contender's process.

    Args:
        name: of the contender.
        command: what runs; by default worker.py with this Python.
        timeout: seconds until an answer must be there.
    """

    def __init__(self, name: str, command: list[str] | None = None, timeout: float = 600.0) -> None:
        self.name, self.timeout = name, timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command or [sys.executable, str(WORKER), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=environment(),
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """The result of a contender's method.

        Raises:
            ContenderError: it failed; with the last lines that it wrote.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        except BrokenPipeError:
            raise self._failure(method, "is gone") from None
        if not select.select([process.stdout], [], [], self.timeout)[0]:
            self.close()
            raise self._failure(method, f"has not answered for {self.timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise self._failure(method, f"ended with status {process.returncode}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(f"{self.name}.{method}: {answer['error']}")
        return answer["result"]

    def _failure(self, method: str, what: str) -> ContenderError:
        self._errors.seek(0)
        last = "\n".join(self._errors.read().splitlines()[-8:])
        return ContenderError(f"{self.name}.{method}: {what}\n{last}")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._errors.close()
