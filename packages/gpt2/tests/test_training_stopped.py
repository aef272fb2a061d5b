"""Runs that are stopped from outside, as processes: signals, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lm_core import Trainer
from lm_core.checkpoint import atomic

# 11 steps an epoch; a checkpoint in the middle of every fifth.
STEPS, EVERY = 552, 46


@pytest.fixture
def run(data, sizes, tmp_path) -> dict:
    return {
        "base": "gpt2_tiny", "seed": 3, "model": {"model_config": {**sizes, "num_layers": 1}},
        "output_dir": str(tmp_path / "out"),
        "runner_config": {"epochs": 100, "batch_size": 2, "max_steps": STEPS},
        "train_dataset": {"data_loader": {"dataset_dir": str(data["train"])}},
        "callbacks": [
            {"type": "LossMonitor", "per_print_times": 10},
            {"type": "CheckpointMonitor", "prefix": "t", "save_checkpoint_steps": EVERY},
        ],
    }  # fmt: skip


@pytest.fixture
def start(run, tmp_path) -> Iterator:
    """`start(flag, ...)` -> a process that trains; none is left behind."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    started = []

    def launch(*more: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "lm_gpt2.pretrain", "--config", str(path), *more],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "GLOG_v": "3"},
        )  # fmt: skip
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def losses(output: Path) -> list[tuple]:
    lines = (output / "log/rank_0/metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in found]


@pytest.mark.slow
def test_signals_and_kill_lose_nothing(run, start, tmp_path):
    """Ctrl-C, SIGTERM and kill -9, one after the other: the bits of a run never stopped.

    All but the first save in the background.
    """
    folder = tmp_path / "out" / "checkpoint" / "rank_0"
    process, reached = start(), 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        wait_for(folder / f"t-{EVERY * (reached // EVERY + 2)}" / "manifest.json", process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        steps = [int(path.name[2:]) for path in folder.glob("t-*")]
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 128 + number, errors
            assert f"{number.name}: finishing this step and saving" in errors
            assert f"stopped at step {max(steps)} of {STEPS}" in errors
            assert "resume_training True" in errors and "Traceback" not in errors
        assert reached < max(steps) < STEPS
        reached = max(steps)
        assert not atomic.verify(folder / f"t-{reached}")
        process = start("--resume_training", "True", "callbacks.CheckpointMonitor.async_save=True")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"resuming {folder}/t-{reached}: step {reached}" in errors
    whole = Trainer({**run, "output_dir": str(tmp_path / "whole")})
    last = whole.train()
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "out")) == STEPS
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (folder / last.name / file).read_bytes() == (last / file).read_bytes()


@pytest.mark.slow
def test_stopped_while_the_graph_compiles(start, tmp_path):
    """Minutes, for a large model: the first step is finished and saved; asked twice, it ends."""
    process = start()
    for line in process.stderr:
        if "compiling the training step" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors and "stopped at step" in errors
    (saved,) = (tmp_path / "out" / "checkpoint" / "rank_0").iterdir()
    assert not atomic.verify(saved)
    process = start("--resume_training", "True", "--max_steps", "20")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and f"resuming {saved}" in errors
