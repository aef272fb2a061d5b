"""Jobs of several processes, started as users start them: by a package's launch.sh."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sources import ROOT

from lm_core.data.mindrecord import RecordWriter

SCRIPT = ROOT / "packages" / "gpt2" / "launch.sh"
VOCABULARY, LENGTH = 96, 32
SIZES = {
    "preset": "gpt2_tiny", "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 1,
    "num_heads": 4, "seq_length": LENGTH, "max_decode_length": LENGTH,
}  # fmt: skip


def write_records(path: Path, count: int) -> Path:
    """Random records for a model of SIZES."""
    rng = np.random.default_rng(count)
    with RecordWriter(path, ("input_ids",)) as writer:
        for _ in range(count):
            ids = rng.integers(0, VOCABULARY, LENGTH + 1)
            writer.write({"input_ids": ids.astype(np.int32)})
    return path


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: of the launcher.
        out: what was on stdout, which is what rank 0 says.
        errors: what was on stderr.
        seconds: since it was waited for.
    """

    status: int
    out: str
    errors: str
    seconds: float

    @property
    def problems(self) -> list[str]:
        """The lines that tell users what to mend."""
        lines = (self.out + self.errors).splitlines()
        return [line for line in lines if "error: " in line]


@dataclass
class Jobs:
    """Starts jobs in a folder; leaves no process behind. All that it starts carries a mark."""

    folder: Path
    script: Path = SCRIPT
    mark: str = field(default_factory=lambda: f"LM_TEST_JOB={secrets.token_hex(8)}")
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, verb: str, *words: object, **settings: object) -> subprocess.Popen[str]:
        """The launcher of a job; `settings` are environment variables as NPROC."""
        key, _, value = self.mark.partition("=")
        environment = {**os.environ, "PYTHON": sys.executable, "GLOG_v": "3", key: value}
        environment |= {name: str(text) for name, text in settings.items()}
        process = subprocess.Popen(
            ["bash", str(self.script), verb, *map(str, words)],
            cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], seconds: float = 120) -> Ended:
        """Waits for the end of a job, which must leave nobody."""
        begin = time.monotonic()
        out, errors = process.communicate(timeout=seconds)
        ended = Ended(process.returncode, out, errors, time.monotonic() - begin)
        assert self.until(lambda: not self.running(), 2), ended
        return ended

    def run(self, verb: str, *words: object, **settings: object) -> Ended:
        """Runs a job to its end."""
        return self.finish(self.start(verb, *words, **settings))

    def running(self) -> list[int]:
        """The processes of all jobs."""
        return list(self._with(self.mark))

    def worker(self, rank: int) -> int | None:
        """The process of a rank; None while there is none."""
        every = self._with(self.mark, "MS_ROLE=MS_WORKER", f"RANK_ID={rank}")
        return next((number for number in every if os.getsid(number) == number), None)

    @staticmethod
    def _with(*wanted: str) -> Iterator[int]:
        """Processes with these in their environment; what has ended has none."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                found = (folder / "environ").read_bytes().split(b"\0")
                if all(text.encode() in found for text in wanted):
                    yield int(folder.name)

    @staticmethod
    def until(condition: Callable[[], object], seconds: float = 60) -> bool:
        """Waits for something; whether it came."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.005)
        return bool(condition())

    def close(self) -> None:
        """Ends all that is left."""
        for number in self.running():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in self.started:
            process.communicate()


def history(output: Path, rank: int = 0) -> list[dict[str, float]]:
    """What a rank noted of each step; without an unfinished last line."""
    path = output / "log" / f"rank_{rank}" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(output: Path, rank: int = 0) -> list[tuple[float, ...]]:
    """Step, loss and norm of each step."""
    found = [line for line in history(output, rank) if "loss" in line]  # the others: evaluations
    return [(line["step"], line["loss"], line["grad_norm"]) for line in found]


def steps(output: Path, rank: int) -> list[int]:
    """The steps that a rank has saved, in order."""
    found = (output / "checkpoint" / f"rank_{rank}").glob("t-*")
    return sorted(int(path.name.removeprefix("t-")) for path in found)


def files(output: Path, step: int, rank: int) -> dict[str, bytes]:
    """Weights and optimizer state of a rank."""
    folder = output / "checkpoint" / f"rank_{rank}" / f"t-{step}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
