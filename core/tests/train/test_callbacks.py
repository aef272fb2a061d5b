"""Lines, bars, metric files and checkpoints, around a loop that computes nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_loop import Loop, names, record

from lm_core.checkpoint import atomic
from lm_core.errors import CheckpointError, ConfigError
from lm_core.train import callbacks
from lm_core.train.callbacks import CheckpointMonitor, LossMonitor, MetricsFile, TensorBoard


def lines_of(caplog, *items, loop=None, **changes) -> list[str]:
    with caplog.at_level(logging.INFO, logger="lm_core"):
        (loop or Loop()).run(*items, **changes)
    return [entry.getMessage() for entry in caplog.records]


def test_a_line_per_interval_and_one_for_the_last_step(caplog):
    lines = lines_of(caplog, LossMonitor(4))
    assert [re.match(r"step (\d+)/10", line)[1] for line in lines] == ["4", "8", "10"]
    # Means of 3 4 5 6, of 7 8 9 10, and of 11 12.
    assert [re.search(r"loss ([\d.]+)", line)[1] for line in lines] == [
        "4.5000", "8.5000", "11.5000",
    ]  # fmt: skip
    assert lines[0] == (
        "step 4/10 (40 %), epoch 1/3, loss 4.5000, lr 0.0003, grad norm 0.500, 1234 tokens/s, "
        "1:05 left"
    )


def test_a_line_says_that_a_step_was_skipped(caplog):
    lines = lines_of(caplog, LossMonitor(1), loop=Loop(1), skipped=True, loss_scale=512.0)
    assert "skipped (loss scale 512)" in lines[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch, caplog):
    """It starts where the run was resumed, and there are no lines beside it."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert not lines_of(caplog, LossMonitor(1), loop=Loop(10, start=4))
    last = screen.getvalue().split("\r")[-1]
    assert "10/10" in last and "loss 12.0000" in last and "grad norm 0.500" in last
    assert "4/10" in screen.getvalue()


def test_an_evaluation_is_a_line(caplog):
    with caplog.at_level(logging.INFO, logger="lm_core"):
        LossMonitor().after_evaluation(Loop(), {"step": 7, "eval_loss": 2.0, "eval_ppl": 7.389})
        found = {"step": 8, "eval_loss": 0.5, "eval_accuracy": 0.75}
        LossMonitor().after_evaluation(Loop(), found)
    assert caplog.messages == [
        "step 7: held-out loss 2.0000, perplexity 7.39",
        "step 8: held-out loss 0.5000, accuracy 0.7500",
    ]


def test_every_line_of_the_metrics_is_json(tmp_path):
    path = tmp_path / "log" / "metrics.jsonl"
    Loop(3).run(MetricsFile(path), loss=float("nan"), grad_norm=float("inf"))
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    lines = [json.loads(line, **refuse) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0] == record(1, loss=None, grad_norm=None)


def test_a_resumed_run_adds_to_the_metrics_and_a_new_one_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for start, expected in ((0, 3), (2, 4), (0, 3)):
        Loop(3, start=start).run(MetricsFile(path))
        assert len(path.read_text().splitlines()) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_metrics_that_cannot_be_written_do_not_end_training(caplog):
    lines = lines_of(caplog, MetricsFile(Path("/dev/full")))
    assert lines == ["/dev/full: lines are missing: No space left on device; training goes on"]


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError) as caught:
        TensorBoard(tmp_path)
    assert len(caught.value.problems) == 1
    assert "pip install 'lm-core[tensorboard]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensorboard_gets_every_number(monkeypatch, tmp_path):
    points = []
    writer = SimpleNamespace(
        add_scalar=lambda *point: points.append(point), close=lambda: points.append("closed")
    )
    fake = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    Loop(10).run(TensorBoard(tmp_path, every=5))
    assert points[-1] == "closed"
    assert ("loss", 7.0, 5) in points and ("loss", 12.0, 10) in points
    assert {point[2] for point in points[:-1]} == {5, 10}
    assert {point[0] for point in points[:-1]} == record(1).keys() - {"step"}


def test_checkpoints_by_steps_and_at_the_end(tmp_path):
    loop = Loop(10).run(CheckpointMonitor(tmp_path, "x", every_steps=4, keep=9))
    assert loop.saved == [4, 8, 10]
    assert names(tmp_path) == ["x-4", "x-8", "x-10"]
    # The last one is not written twice.
    assert Loop(8).run(CheckpointMonitor(tmp_path, "y", every_steps=4)).saved == [4, 8]
    assert Loop(8).run(CheckpointMonitor(tmp_path, "z")).saved == [8]


def test_checkpoints_by_time(tmp_path, monkeypatch):
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(now)))
    loop = Loop(10).run(CheckpointMonitor(tmp_path, every_seconds=35.0))
    assert loop.saved[:-1] and loop.saved[-1] == 10
    gaps = {b - a for a, b in zip(loop.saved[:-1], loop.saved[1:-1], strict=False)}
    assert gaps == {4}  # 3 steps are 30 s


@pytest.mark.parametrize("keep", [1, 2, 3, 99])
def test_old_checkpoints_go(tmp_path, keep):
    """Those of other prefixes stay."""
    Loop(2).run(CheckpointMonitor(tmp_path, "other", every_steps=1))
    Loop(6).run(CheckpointMonitor(tmp_path, "x", every_steps=1, keep=keep))
    mine = [name for name in names(tmp_path) if name.startswith("x")]
    assert mine == [f"x-{n}" for n in range(max(1, 7 - keep), 7)]
    assert {"other-1", "other-2"} <= set(names(tmp_path))


@pytest.mark.parametrize("background", [True, False])
def test_nothing_is_deleted_for_a_new_one_that_is_damaged(
    tmp_path, monkeypatch, caplog, background
):
    """What was written is read back; at the end of a run a damaged one is an error."""
    monkeypatch.setattr(atomic, "verify", lambda path: [f"{path}: damaged"])
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=1, keep=1, background=background)
    with pytest.raises(CheckpointError, match="x-4: damaged"):
        Loop(4).run(monitor)
    assert names(tmp_path) == ["x-1", "x-2", "x-3", "x-4"]
    assert [text for text in caplog.messages if "NOT SAVED" in text] == [
        f"CHECKPOINT NOT SAVED at step {n}: {tmp_path}/x-{n}: damaged; training goes on"
        for n in (1, 2, 3)
    ]


def test_old_ones_that_cannot_be_deleted_are_named(tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "remove_directory", refuse)
    assert Loop(2).run(CheckpointMonitor(tmp_path, "x", every_steps=1, keep=1)).saved == [1, 2]
    assert f"{tmp_path}/x-1: cannot be deleted: Permission denied" in caplog.text
    assert "NOT SAVED" not in caplog.text


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    """Whatever step it was writing."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".x-9.tmp-{socket.gethostname()}-{pid}-aa").mkdir()
    Loop(1).run(CheckpointMonitor(tmp_path, "x"))
    left = f".x-9.tmp-{socket.gethostname()}-{os.getpid()}-aa"
    assert sorted(path.name for path in tmp_path.iterdir()) == [left, "x-1"]


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_that_cannot_be_written_costs_only_itself(tmp_path, caplog, background):
    loop = Loop(6)
    loop.broken = (2, 3)
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=1, keep=9, background=background)
    lines = lines_of(caplog, monitor, loop=loop)
    assert loop.saved == [1, 4, 5, 6]
    assert [line for line in lines if "NOT SAVED" in line] == [
        f"CHECKPOINT NOT SAVED at step {n}: {tmp_path}/x-{n}: disk is full; make room; "
        "training goes on"
        for n in (2, 3)
    ]


def test_a_folder_that_is_gone_or_a_file(tmp_path, caplog):
    """Whatever the system says to it, training goes on, and saves again when it can."""
    folder = tmp_path / "rank_0"

    class Vandal(callbacks.Callback):
        def after_step(self, loop, record):
            if loop.steps == 2:
                folder.rename(tmp_path / "away")
                folder.write_text("not a folder")
            if loop.steps == 4:
                folder.unlink()

    loop = Loop(5)
    lines = lines_of(caplog, Vandal(), CheckpointMonitor(folder, "x", every_steps=1), loop=loop)
    assert loop.saved == [1, 4, 5]
    assert sum("NOT SAVED" in line for line in lines) == 2
    assert names(tmp_path / "away") == ["x-1"]


def test_the_last_checkpoint_must_be_written(tmp_path):
    loop = Loop(3)
    loop.broken = (3,)
    with pytest.raises(CheckpointError, match="disk is full"):
        loop.run(CheckpointMonitor(tmp_path, "x", every_steps=1))
    assert names(tmp_path) == ["x-1", "x-2"]


def test_a_complete_run_that_is_resumed_writes_nothing(tmp_path):
    assert Loop(3).run(CheckpointMonitor(tmp_path, "x")).saved == [3]
    monitor = CheckpointMonitor(tmp_path, "x", last=tmp_path / "x-3")
    assert Loop(3, start=3).run(monitor).saved == []


class Slow:
    """A snapshot that is written when it is allowed to."""

    def __init__(self, loop: Loop, log: list) -> None:
        self.loop, self.log, self.step = loop, log, loop.steps
        self.may_end = threading.Event()
        self.began = threading.Event()

    def write(self, path: Path) -> None:
        self.log.append(("begin", self.step, self.loop.steps))
        self.began.set()
        assert self.may_end.wait(20)
        with atomic.new_directory(path) as scratch:
            (scratch / "training.json").write_text(str(self.step))
        self.log.append(("end", self.step, self.loop.steps))


@pytest.fixture
def slow():
    """A loop whose checkpoints take as long as a test wants."""
    loop, made, log = Loop(9), [], []

    def snapshot(*, copy: bool = True) -> Slow:
        made.append(Slow(loop, log))
        if not copy:
            made[-1].may_end.set()
        return made[-1]

    loop.state.snapshot = snapshot
    return loop, made, log


def step(loop: Loop, monitor: CheckpointMonitor) -> None:
    loop.steps += 1
    monitor.end_step(loop)


def test_in_the_background_steps_go_on_and_one_is_written_at_a_time(tmp_path, slow):
    loop, made, log = slow
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=3, background=True)
    monitor.begin(loop)
    for _ in range(5):
        step(loop, monitor)
    assert made[0].began.wait(20) and len(made) == 1 and loop.steps == 5
    assert log[0][:2] == ("begin", 3) and not (tmp_path / "x-3").exists()
    # The sixth step's copy is made only when the third's is on the disk.
    second = threading.Thread(target=step, args=(loop, monitor))
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(made) == 1
    made[0].may_end.set()
    second.join(20)
    assert not second.is_alive() and len(made) == 2 and monitor.last == tmp_path / "x-3"
    assert made[1].began.wait(20)
    # The end of the run waits, too.
    loop.steps = 9
    last = threading.Thread(target=monitor.finish, args=(loop,))
    last.start()
    last.join(0.2)
    assert last.is_alive()
    made[1].may_end.set()
    last.join(20)
    monitor.close()
    assert names(tmp_path) == ["x-3", "x-6", "x-9"] and monitor.last == tmp_path / "x-9"
    assert [entry[:2] for entry in log] == [(w, n) for n in (3, 6, 9) for w in ("begin", "end")]


def test_a_run_that_fails_still_ends_the_checkpoint_it_was_writing(tmp_path, slow):
    loop, made, _ = slow
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=3, background=True)
    for _ in range(4):
        step(loop, monitor)
    closing = threading.Thread(target=monitor.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    made[0].may_end.set()
    closing.join(20)
    assert names(tmp_path) == ["x-3"] and not atomic.verify(tmp_path / "x-3")


def test_an_error_in_the_background_is_told_at_the_next_step(tmp_path, caplog):
    loop = Loop(9)
    loop.broken = (3,)
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=3, background=True)
    for _ in range(3):
        step(loop, monitor)
    monitor._writing[1].exception(20)
    assert "NOT SAVED" not in caplog.text
    step(loop, monitor)
    assert "CHECKPOINT NOT SAVED at step 3" in caplog.text
    monitor.close()


def test_stopped_at_a_step_that_is_being_saved_it_is_saved_once(tmp_path, slow):
    """And again where that failed, as an error if it fails again."""
    loop, made, _ = slow
    monitor = CheckpointMonitor(tmp_path, "x", every_steps=3, background=True)
    for _ in range(3):
        step(loop, monitor)
    made[0].may_end.set()
    monitor.finish(loop)
    assert len(made) == 1 and names(tmp_path) == ["x-3"]
    monitor.close()
    loop = Loop(9)
    loop.broken = (3,)
    monitor = CheckpointMonitor(tmp_path / "y", "x", every_steps=3, background=True)
    for _ in range(3):
        step(loop, monitor)
    with pytest.raises(CheckpointError, match="disk is full"):
        monitor.finish(loop)
    monitor.close()
