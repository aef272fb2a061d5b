"""Checkpoints of two ranks, which are threads here, around a loop that computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_loop import Loop, names

from lm_core.train.callbacks import Callback, CheckpointMonitor


class Together:
    """The agreement of two ranks that are threads; where only one asks, it fails."""

    def __init__(self) -> None:
        self.barrier, self.flags = threading.Barrier(2, timeout=5), []

    def any(self, flag: bool) -> bool:
        self.flags.append(flag)
        self.barrier.wait()
        found = any(self.flags)
        if self.barrier.wait() == 0:
            self.flags.clear()
        self.barrier.wait()
        return found

    def all(self, flag: bool) -> bool:
        return not self.any(not flag)


def as_two(act: Callable[[int, Loop], None], total: int = 4) -> list[Loop]:
    """Does something on two ranks at once."""
    loops, together = [Loop(total), Loop(total)], Together()
    for loop in loops:
        loop.agreement = together
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(act, range(2), loops))
    return loops


@pytest.mark.parametrize("background", [True, False])
def test_old_checkpoints_stay_until_every_rank_has_a_newer_one(tmp_path, background):
    """Rank 1 cannot write for two steps, and its first part needs that of rank 0."""
    seen = []

    class Watcher(Callback):
        def end_step(self, loop):
            seen.append((loop.steps, (tmp_path / "0" / "x-1").exists()))

    def act(rank: int, loop: Loop) -> None:
        loop.broken = (2, 3) if rank == 1 else ()
        folder = tmp_path / str(rank)
        monitor = CheckpointMonitor(folder, "x", every_steps=1, keep=1, background=background)
        loop.run(monitor, *([Watcher()] if rank == 0 else []))

    loops = as_two(act)
    assert [loop.saved for loop in loops] == [[1, 2, 3, 4], [1, 4]]
    assert [there for step, there in seen if step in (2, 3)] == [True, True]
    assert names(tmp_path / "0") == names(tmp_path / "1") == ["x-4"]


def test_ranks_that_stop_at_a_step_that_one_could_not_save(tmp_path):
    """The other one has it, and does not leave while rank 1 asks for it."""

    def act(rank: int, loop: Loop) -> None:
        monitor = CheckpointMonitor(tmp_path / str(rank), "x", every_steps=2, keep=1)
        monitor.begin(loop)
        loop.steps, loop.broken = 2, (2,) if rank == 1 else ()
        monitor.end_step(loop)
        loop.broken = ()
        monitor.finish(loop)
        monitor.close()

    assert [loop.saved for loop in as_two(act)] == [[2], [2]]
