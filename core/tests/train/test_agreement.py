"""What ranks decide together: their answers are exchanged by threads here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lm_core.parallel import collectives
from lm_core.parallel.context import ParallelContext
from lm_core.train.agreement import Agreement


@pytest.fixture
def ask(monkeypatch):
    """Calls a function with the Agreement of every rank, all at once; their answers."""

    def ask(ranks, question):
        meeting, board = threading.Barrier(ranks, timeout=10), [0] * ranks

        def gathered(context, value):
            board[context.rank] = value
            meeting.wait()
            found = list(board)
            meeting.wait()
            return found

        def agreed(group, flag):
            raise AssertionError("not asked here")

        monkeypatch.setattr(collectives, "gathered", gathered)
        monkeypatch.setattr(collectives, "agreed", agreed)
        contexts = [ParallelContext(data_parallel=ranks, rank=rank) for rank in range(ranks)]
        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(lambda context: question(Agreement(context)), contexts))

    return ask


@pytest.mark.parametrize(
    ("own", "common"),
    [
        ([[10, 20, 30], [10, 20, 30]], 30),
        ([[10, 20], [10, 20, 30]], 20),
        ([[10, 30], [20, 30], [10, 20, 30]], 30),
        ([[10, 30], [10, 20], [10, 20, 30]], 10),
        ([[30, 10], [20]], None),
        ([[], [10]], None),
        ([[], []], None),
        ([[0], [0, 5]], 0),
        ([[1, 3, 5, 7, 9], [1, 2, 4, 6, 8], [1, 9]], 1),
    ],
)
def test_the_newest_that_all_have(ask, own, common):
    found = ask(len(own), lambda one: one.newest_common(own[one.context.rank]))
    assert found == [common] * len(own)


def test_the_number_of_the_first(ask):
    assert ask(3, lambda one: one.of_first(one.context.rank + 5)) == [5, 5, 5]


def test_a_single_process_asks_itself():
    alone = Agreement(ParallelContext.local())
    assert alone.newest_common([3, 9, 4]) == 9
    assert alone.newest_common([]) is None
    assert alone.of_first(4) == 4
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert (alone.all(True), alone.all(False)) == (True, False)
