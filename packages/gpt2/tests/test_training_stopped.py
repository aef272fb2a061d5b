"""Runs that are stopped from outside: signals, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lm_core.checkpoint import atomic


@pytest.fixture
def run_file(data, sizes, tmp_path):
    run = {
        "base": "gpt2_tiny", "seed": 3, "model": {"model_config": sizes},
        "output_dir": str(tmp_path / "out"),
        "runner_config": {"epochs": 400, "batch_size": 4, "max_steps": 1500},
        "train_dataset": {"data_loader": {"dataset_dir": str(data["train"])}},
        "callbacks": [
            {"type": "LossMonitor", "per_print_times": 10},
            {"type": "CheckpointMonitor", "prefix": "t", "save_checkpoint_steps": 100},
        ],
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def _start(run_file: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lm_gpt2.pretrain", "--config", str(run_file), *more],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "GLOG_v": "3"},
    )  # fmt: skip


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_signals_and_kill_lose_nothing(run_file):
    """SIGTERM saves and says how to go on; after kill -9 the last checkpoint is good."""
    folder = run_file.parent / "out" / "checkpoint" / "rank_0"
    process = _start(run_file)
    _wait_for(folder / "t-100" / "manifest.json", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume_training True" in errors and "Traceback" not in errors
    stopped = max(int(path.name[2:]) for path in folder.iterdir())
    process = _start(run_file, "--resume_training", "True")
    _wait_for(folder / f"t-{100 * (stopped // 100 + 2)}" / "manifest.json", process)
    process.kill()
    process.communicate()
    process = _start(run_file, "--resume_training", "True")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "resuming" in errors
    lines = (run_file.parent / "out/log/rank_0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 1501))
    assert not atomic.verify(folder / "t-1500")
