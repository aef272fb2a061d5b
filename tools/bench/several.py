"""A training step of several processes and of one: the commands of users, and what they report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from driver import ContenderError, environment

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
LONGEST = 20
"""Updates for which there are records."""
_DEGREES = ("data_parallel", "model_parallel", "pipeline_stage")
PATIENCE = 400
"""Seconds until a run has ended."""


def settings() -> dict[str, Any]:
    """The run, without its data."""
    return {
        "base": "gpt2_tiny",
        "model": {"model_config": MODEL},
        "runner_config": {"max_steps": STEPS},
        "callbacks": [{"type": "MFLossMonitor", "per_print_times": STEPS}],
    }


def rows(degrees: Mapping[str, Any]) -> int:
    """Records of a micro-batch."""
    return RECORDS // degrees.get("data_parallel", 1) // degrees.get("micro_batch_num", 1)


def prepare(folder: Path) -> None:
    """Writes the run and random records for it."""
    from lm_core.data.mindrecord import RecordWriter

    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(json.dumps(settings()))
    rng = np.random.default_rng(0)
    with RecordWriter(folder / "random.mindrecord", ("input_ids",)) as writer:
        for _ in range(LONGEST * RECORDS):
            ids = rng.integers(0, MODEL["vocab_size"], MODEL["seq_length"] + 1)
            writer.write({"input_ids": ids.astype(np.int32)})


def step_seconds(folder: Path, degrees: Mapping[str, Any], output: str) -> float:
    """Seconds of an update of the prepared run, the median of those that count.

    Raises:
        ContenderError: as `train`; or it took part of what was asked for.
    """
    train(folder, degrees, output, STEPS)
    lines = (folder / output / "log" / "rank_0" / "metrics.jsonl").read_text().splitlines()
    return _seconds([json.loads(line) for line in lines])


def train(folder: Path, degrees: Mapping[str, Any], output: str, steps: int) -> None:
    """Runs what was prepared.

    Args:
        folder: what `prepare` wrote.
        degrees: keys of `parallel_config`; without any, one process.
        output: name of the run's folder, which must be new.
        steps: updates, at most LONGEST.

    Raises:
        ContenderError: the run failed.
    """
    words = [
        "-m", "lm_gpt2.pretrain", "--config", str(folder / "run.yaml"),
        "--batch_size", str(rows(degrees)), "--max_steps", str(steps),
        "--train_dataset_dir", str(folder / "random.mindrecord"),
        "--output_dir", str(folder / output),
    ]  # fmt: skip
    if degrees:
        wanted = [f"parallel_config.{key}={value}" for key, value in degrees.items()]
        words += ["--use_parallel", "True", *wanted]
        sizes = (degrees.get(key, 1) for key in _DEGREES)
        _start(prod(sizes), words, folder / f"{output}-logs")
    else:
        _run(words)


def _run(words: list[str]) -> None:
    """Runs Python in one process."""
    try:
        done = subprocess.run(
            [sys.executable, *words], env=environment(), capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ContenderError(f"{' '.join(words)}: no end after {PATIENCE} s") from error
    if done.returncode:
        raise ContenderError(f"{' '.join(words)}: {done.stderr[-500:]}")


def _start(processes: int, words: list[str], folder: Path) -> None:
    """Runs Python in several processes, which share the cores."""
    from lm_core.testing import ranks

    try:
        ranks.start(processes, words, folder, PATIENCE)
    except AssertionError as error:
        raise ContenderError(str(error)) from error


def _seconds(records: list[dict[str, Any]]) -> float:
    """The median over the updates that count, all of which must be of the whole batch."""
    tokens = RECORDS * MODEL["seq_length"]
    steps = [record for record in records if "tokens_per_second" in record]
    if len(steps) != STEPS or any(record["tokens"] != tokens for record in steps):
        seen = sorted({record["tokens"] for record in steps})
        raise ContenderError(f"{len(steps)} updates of {seen} tokens; must be {STEPS} of {tokens}")
    return median(record["tokens"] / record["tokens_per_second"] for record in steps[WARMUP:])
