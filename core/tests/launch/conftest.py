"""Jobs of workers that do what a test says (fake/lm_fake), started as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FAKE = Path(__file__).parent / "fake"
SETTINGS = (
    "NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK_TABLE_FILE", "DRY_RUN",
    "MAX_RESTARTS", "HANG_SECONDS", "START_SECONDS", "STOP_SECONDS", "OMP_NUM_THREADS",
)  # fmt: skip


class Jobs:
    """Starts jobs in a folder, and reads what their workers noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen] = []

    def start(
        self,
        *words: str,
        verb: str = "pretrain",
        folder: Path = FAKE,
        model: str = "fake",
        stdin: int | None = None,
        **settings: object,
    ) -> subprocess.Popen:
        environment = {name: text for name, text in os.environ.items() if name not in SETTINGS}
        path = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
        environment |= {"PYTHONPATH": path, "FAKE_FOLDER": str(self.folder), "NPROC": "2"}
        environment |= {name: str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "lm_core.launch", model, verb, *words],
            cwd=self.folder, env=environment, text=True,
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # The tests may themselves run under nohup, which children would inherit.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *words: str, **settings: Any) -> tuple[int, str, str]:
        """Exit status, what was on stdout, what was on stderr; nothing is left running."""
        return self.finish(self.start(*words, **settings))

    def finish(self, process: subprocess.Popen) -> tuple[int, str, str]:
        out, errors = process.communicate(timeout=120)
        assert self.running() == []
        return process.returncode, out, errors

    def notes(self, rank: int, key: str) -> list:
        path = self.folder / f"rank_{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [one[key] for one in found if key in one]

    def pids(self) -> list[int]:
        """Every process that workers noted, and their children."""
        return [n for rank in range(4) for key in ("pid", "child") for n in self.notes(rank, key)]

    def running(self) -> list[int]:
        return [number for number in self.pids() if self.is_running(number)]

    def log(self, rank: int) -> str:
        return (self.folder / f"output/log/rank_{rank}/launch.log").read_text()

    @staticmethod
    def is_running(number: int) -> bool:
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    @staticmethod
    def until(condition, seconds: float = 20) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        return bool(condition())


@pytest.fixture
def jobs(tmp_path):
    found = Jobs(tmp_path)
    yield found
    for process in found.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    for number in found.running():
        os.kill(number, signal.SIGKILL)
