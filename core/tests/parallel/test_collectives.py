"""What is exchanged between ranks, computed for all ranks in one process."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.parallel import collectives
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.traffic import bucket_bounds


@pytest.fixture
def sums(monkeypatch):
    """Each rank's part of a sum, and the sum as the next call of a rank finds it."""
    parts: list[np.ndarray] = []

    def all_reduce(group, values):
        parts.append(np.asarray(values, np.float32))
        return np.sum(parts, 0, dtype=np.float32)

    monkeypatch.setattr(collectives, "all_reduce", all_reduce)
    return parts


def test_sums_of_float64_keep_their_digits(sums):
    """Losses of long evaluations; a float32 would keep 7 digits."""
    values = np.random.default_rng(0).normal(size=(3, 50)) * 10.0 ** np.arange(-20, 30)
    for rank, own in enumerate(values):
        context = ParallelContext(data_parallel=3, rank=rank)
        found = collectives.sum_over_data(context, own)
    assert found == values.sum(0).tolist()


def test_one_process_sums_nothing():
    assert collectives.sum_over_data(ParallelContext.local(), [1 / 3]) == [1 / 3]
    assert collectives.all_reduce("", [1.5]).tolist() == [1.5]


def test_numbers_of_all_ranks(sums):
    values = [0, 1, (1 << 48) - 1, 20_261_121_131_313]
    for rank, value in enumerate(values):
        found = collectives.gathered(ParallelContext(data_parallel=4, rank=rank), value)
    assert found == values


@pytest.mark.parametrize("buckets", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("seed", range(5))
def test_buckets_hold_everything_once_and_about_equally(buckets, seed):
    sizes = np.random.default_rng(seed).integers(1, 1000, 40).tolist()
    bounds = bucket_bounds(sizes, buckets)
    assert [place for start, end in bounds for place in range(start, end)] == list(range(40))
    assert len(bounds) <= buckets
    sums = [sum(sizes[start:end]) for start, end in bounds]
    assert max(sums) <= sum(sizes) / buckets + max(sizes)


def test_buckets_of_nothing_and_of_one_giant():
    assert bucket_bounds([], 4) == []
    assert bucket_bounds([1, 10**9, 1], 4) == [(0, 2), (2, 3)]
