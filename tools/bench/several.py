"""A training step of several processes and of one: the commands of users, and what they report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from driver import THREADS, ContenderError, environment

STEPS, WARMUP = 16, 4
"""Updates of a run, and those at its beginning that do not count."""
RECORDS = 8
"""Of an update, over all processes."""
MODEL: dict[str, Any] = {
    "preset": "gpt2_tiny", "num_layers": 4, "hidden_size": 512, "num_heads": 8, "seq_length": 128,
    "vocab_size": 8192, "hidden_dropout_rate": 0.0, "attention_dropout_rate": 0.0,
    "embedding_dropout_prob": 0.0,
}  # fmt: skip
"""17 million parameters: 16 sums of 2 MB of activations, or one of 67 MB of gradients."""
PATIENCE = 400
"""Seconds until a run has ended."""


def prepare(folder: Path) -> None:
    """Writes the run and random records for it."""
    from lm_core.data.mindrecord import RecordWriter

    run = {
        "base": "gpt2_tiny",
        "model": {"model_config": MODEL},
        "runner_config": {"max_steps": STEPS},
        "callbacks": [{"type": "MFLossMonitor", "per_print_times": STEPS}],
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(json.dumps(run))
    rng = np.random.default_rng(0)
    with RecordWriter(folder / "random.mindrecord", ("input_ids",)) as writer:
        for _ in range(STEPS * RECORDS):
            ids = rng.integers(0, MODEL["vocab_size"], MODEL["seq_length"] + 1)
            writer.write({"input_ids": ids.astype(np.int32)})


def step_seconds(folder: Path, degrees: dict[str, int], output: str) -> float:
    """Seconds of an update of the prepared run, the median of those that count.

    Args:
        folder: what `prepare` wrote.
        degrees: keys of `parallel_config`; without any, one process.
        output: name of the run's folder, which must be new.

    Raises:
        ContenderError: the run failed, or took part of what was asked for.
    """
    processes = int(np.prod(list(degrees.values())))
    batch = RECORDS // degrees.get("data_parallel", 1)
    words = [
        "-m", "lm_gpt2.pretrain", "--config", "run.yaml", "--batch_size", str(batch),
        "--train_dataset_dir", "random.mindrecord", "--output_dir", output,
    ]  # fmt: skip
    if processes == 1:
        _run([sys.executable, *words], folder, processes)
    else:
        wanted = [f"parallel_config.{key}={value}" for key, value in degrees.items()]
        started = _msrun(processes, folder / f"{output}-msrun")
        _run([*started, "python", *words, "--use_parallel", "True", *wanted], folder, processes)
    lines = (folder / output / "log" / "rank_0" / "metrics.jsonl").read_text().splitlines()
    return _seconds([json.loads(line) for line in lines])


def _msrun(processes: int, logs: Path) -> list[str]:
    """The words that start as many processes as MindSpore does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "worker_num": processes, "local_worker_num": processes, "master_port": port,
        "log_dir": logs, "join": True,
    }  # fmt: skip
    program = Path(sys.executable).with_name("msrun")
    return [str(program), *(f"--{key}={value}" for key, value in options.items())]


def _run(command: Sequence[str], folder: Path, processes: int) -> None:
    """Runs a command, the threads of all its processes together as many as everybody has."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": str(max(1, THREADS // processes)), "PATH": path}
    with open(folder / "output.log", "w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**environment(), **threads}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | str = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = f"no end after {PATIENCE} s"
        finally:
            _end(process)
        log.seek(0)
        last = "\n".join(log.read().splitlines()[-8:])
    if status:
        raise ContenderError(f"{' '.join(command)}: {status}\n{last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _seconds(records: list[dict[str, Any]]) -> float:
    """The median over the updates that count, all of which must be of the whole batch."""
    tokens = RECORDS * MODEL["seq_length"]
    steps = [record for record in records if "tokens_per_second" in record]
    if len(steps) != STEPS or any(record["tokens"] != tokens for record in steps):
        seen = sorted({record["tokens"] for record in steps})
        raise ContenderError(f"{len(steps)} updates of {seen} tokens; must be {STEPS} of {tokens}")
    return median(record["tokens"] / record["tokens_per_second"] for record in steps[WARMUP:])
