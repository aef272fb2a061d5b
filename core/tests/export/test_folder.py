"""The folder of an export of several ranks: whole, and never of two exports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lm_core.checkpoint import atomic
from lm_core.errors import CheckpointError
from lm_core.export import description, folder
from lm_core.parallel.context import ParallelContext


class Ranks:
    """Threads in place of processes: all meet where processes exchange something."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.names = count, {}
        self.barrier = threading.Barrier(count, timeout=20)
        monkeypatch.setattr(folder.collectives, "shared", self._shared)
        monkeypatch.setattr(folder.Agreement, "any", lambda *_: self.barrier.wait() > count)

    def export(self, target: Path, overwrite: bool = False, fill: Callable = lambda f, r: None):
        """What became of each rank: None, or its error."""
        with ThreadPoolExecutor(self.count) as pool:
            return list(
                pool.map(lambda rank: self._one(target, rank, overwrite, fill), range(self.count))
            )

    def _one(self, target: Path, rank: int, overwrite: bool, fill: Callable) -> Exception | None:
        context = ParallelContext(rank=rank, model_parallel=self.count)
        try:
            with folder.place(target, context, overwrite) as own:
                (own / description.NAME).write_text(f"rank {rank} of {self.count}")
                fill(own, rank)
        except (CheckpointError, OSError) as error:
            self.barrier.abort()  # as the launcher ends the others
            return error
        except threading.BrokenBarrierError as error:
            return error
        return None

    def _shared(self, context: ParallelContext, values: list[int]) -> list[int]:
        self.names[context.rank] = values
        self.barrier.wait()
        return self.names[0]


def texts(target: Path) -> list[str]:
    return sorted(path.read_text() for path in target.rglob(description.NAME))


def test_fewer_ranks_leave_nothing_of_more(tmp_path, monkeypatch):
    target = tmp_path / "made"
    assert Ranks(3, monkeypatch).export(target) == [None] * 3
    assert texts(target) == [f"rank {rank} of 3" for rank in range(3)]
    assert description.folder_of(target, 2) == target / "rank_2"
    assert not atomic.verify(target) and not atomic.verify(target / "rank_2")
    (target / "notes").write_text("of a user")
    assert Ranks(2, monkeypatch).export(target, overwrite=True) == [None] * 2
    assert texts(target) == ["rank 0 of 2", "rank 1 of 2"]
    assert (target / "notes").exists()
    with folder.place(target, ParallelContext(), True) as own:
        (own / description.NAME).write_text("one")
    assert texts(target) == ["one"] and not list(target.glob("rank_*"))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_was_there_stays_if_a_rank_fails(tmp_path, monkeypatch):
    target = tmp_path / "made"
    assert Ranks(2, monkeypatch).export(target) == [None] * 2
    before = sorted((p, p.read_bytes()) for p in target.rglob("*") if p.is_file())

    def fail(own: Path, rank: int) -> None:
        if rank == 1:
            raise CheckpointError(f"{own}: is full; must not be; free some space")

    errors = Ranks(2, monkeypatch).export(target, True, fail)
    assert str(errors[1]) == f"{target}/rank_1: is full; must not be; free some space"
    assert isinstance(errors[0], threading.BrokenBarrierError)
    assert sorted((p, p.read_bytes()) for p in target.rglob("*") if p.is_file()) == before
    problem = Ranks(2, monkeypatch).export(target)
    assert any("made: holds a checkpoint; it is replaced only if asked" in str(e) for e in problem)
    assert sorted((p, p.read_bytes()) for p in target.rglob("*") if p.is_file()) == before
