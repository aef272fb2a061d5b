"""A program that saves training checkpoints as training does, and computes nothing.

    saver.py kill FOLDER KIND SIZE COUNT SEED   kills such savers
    saver.py fill FOLDER                        fills a small disk with one
    saver.py limit FOLDER                       makes files that are longer than is allowed

Prints JSON with what was seen; an AssertionError is a checkpoint that was lost.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lm_core.checkpoint import atomic, io, saved
from lm_core.checkpoint.layout.tensors import Memory
from lm_core.config.model import ModelConfig
from lm_core.errors import CheckpointError
from lm_core.parallel.context import ParallelContext
from lm_core.train.callbacks import CheckpointMonitor
from lm_core.train.state import Snapshot

ONE_NAME = ("overwritten", "one place")
CONFIG = ModelConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=1, seq_length=8)


class Run:
    """What CheckpointMonitor sees of a loop; every value of a checkpoint is its number."""

    def __init__(self, size: int, steps: int, total: int = 1 << 30) -> None:
        self.size, self.steps, self.total_steps, self.state = size, steps, total, self
        self.agreement = SimpleNamespace(any=bool, all=bool)  # of one rank

    def snapshot(self, *, copy: bool = True, number: int | None = None) -> Snapshot:
        number = self.steps if number is None else number
        values = np.full(max(1, self.size // 12), number, np.float32)
        return Snapshot(
            spec_name="toy",
            config=CONFIG,
            context=ParallelContext.local(),
            weights=Memory({"a": values}),
            moments=Memory({"m": values, "v": values}),
            counters={"version": 1, "step": number},
        )


def number_in(checkpoint: Path) -> int:
    """What a checkpoint holds; every file of it says the same."""
    step = json.loads((checkpoint / saved.STATE).read_text())["step"]
    weights = io.open_directory(checkpoint).read("a")
    moments = io.open_file(checkpoint / saved.OPTIMIZER)
    for values in (weights, moments.read("m"), moments.read("v")):
        assert (values == step).all(), f"{checkpoint} mixes {step} with {set(values.tolist())}"
    return step


def save_for_ever(folder: Path, kind: str, size: int, first: int, report: int) -> None:
    """New names and old ones deleted, by hand or in the background; or one name again and again."""
    if kind == "one place":
        atomic._exchange = lambda a, b: False
    run = Run(size, first)
    monitor = CheckpointMonitor(folder, every_steps=1, keep=2, background=kind == "background")
    monitor.begin(run)
    for number in range(first + 1, 1 << 30):
        if kind in ONE_NAME:
            run.snapshot(number=number).write(folder / "CKP-7")
            os.write(report, b"%d\n" % number)
            continue
        run.steps, before = number, monitor.last
        monitor.end_step(run)
        if monitor.last != before:
            os.write(report, b"%d\n" % saved.step_of(monitor.last))


def kill_one(folder: Path, kind: str, size: int, first: int, delay: float) -> int:
    """Starts a saver and kills it. Returns the last number that it said was saved."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(folder, kind, size, first, writing)
        finally:
            os._exit(1)
    os.close(writing)
    ready = select.select([reading], [], [], 30)[0]
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert ready and os.waitpid(child, 0)[1] == signal.SIGKILL, "the saver failed by itself"
    with os.fdopen(reading) as pipe:
        return [int(line) for line in pipe.read().split()][-1]


def kill(folder: Path, kind: str, size: int, count: int, seed: int) -> dict[str, int]:
    """Kills savers at random moments; each goes on from what the one before it left.

    At least `count` of them, and until two were at work: what others do to the disk decides how
    many that takes.
    """
    choose = random.Random(seed)
    start = time.perf_counter()
    Run(size, 0).snapshot(number=0).write(folder / ("CKP-7" if kind in ONE_NAME else "CKP-0"))
    one_save = time.perf_counter() - start
    number = halfway = kills = 0
    while kills < count or (halfway < 2 and kills < 20 * count):
        kills += 1
        promised = kill_one(folder, kind, size, number, choose.uniform(0, 4 * one_save))
        halfway += any(".tmp-" in name or ".old-" in name for name in os.listdir(folder))
        newest = saved.newest(folder, saved.STATE)
        assert newest is not None and not atomic.verify(newest), "no good checkpoint is left"
        number = number_in(newest)
        assert number >= promised, f"{number} is older than {promised}, which was saved"
    return {"kills": kills, "halfway": halfway, "saved": number}


def fill(folder: Path) -> dict[str, object]:
    """Saves what fits a disk of 1 MB, what does not, and on a disk that cannot be written."""
    seen: dict[str, object] = {}
    run = Run(300_000, 0, total=4)
    monitor = CheckpointMonitor(folder / "run", every_steps=1, keep=2)
    real = shutil.disk_usage
    for run.steps in (1, 2, 3):
        if run.steps == 3:  # Somebody else fills the disk after it was found to have room.
            (folder / "other").write_bytes(bytes(250_000))
            shutil.disk_usage = lambda path: real(path)._replace(free=1 << 40)
        monitor.end_step(run)
    shutil.disk_usage = real
    monitor.end_step(run)
    seen["full"] = state(folder)
    (folder / "other").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    monitor.end_step(run)
    seen["read-only"] = state(folder)
    run.steps = 4
    try:
        monitor.finish(run)
    except CheckpointError as error:
        seen["end"] = str(error)
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    monitor.finish(run)
    seen["room"] = state(folder)
    return seen


def limit(folder: Path) -> dict[str, object]:
    """A disk that refuses bytes although it has room, as it does where a quota is used up."""
    run = Run(10_000, 1)
    monitor = CheckpointMonitor(folder / "run", every_steps=1, background=True)
    monitor.end_step(run)
    monitor._wait()
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )
    run.steps, run.size = 2, 300_000
    monitor.end_step(run)
    monitor._wait()
    return state(folder)


def state(folder: Path) -> dict[str, object]:
    """The names in the folder, and the newest good checkpoint with its number."""
    newest = saved.newest(folder, saved.STATE)
    return {
        "names": sorted(os.listdir(folder / "run")),
        "newest": [newest.name, number_in(newest)] if newest else None,
    }


if __name__ == "__main__":
    logging.getLogger("lm_core").setLevel(logging.ERROR)
    what, place, *rest = sys.argv[1:]
    if what == "kill":
        kind, size, count, seed = rest
        result = kill(Path(place), kind, int(size), int(count), int(seed))
    else:
        result = {"fill": fill, "limit": limit}[what](Path(place))
    assert "mindspore" not in sys.modules
    print(json.dumps(result))
