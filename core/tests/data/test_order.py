"""The computed permutation: complete, uniform, and the same for ever."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from lm_core.data.order import shuffled


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4096, 4097, 65537])
def test_it_is_a_permutation(n):
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**40, 3), (-1, 2)]:
        order = shuffled(n, seed, epoch, np.arange(n))
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(n))


def test_any_positions_can_be_asked_for():
    whole = shuffled(1000, 5, 2, np.arange(1000))
    some = np.array([999, 0, 17, 17, 500])
    assert np.array_equal(shuffled(1000, 5, 2, some), whole[some])
    assert shuffled(1000, 5, 2, np.arange(0)).size == 0


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(shuffled(50, seed, epoch, np.arange(50))) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400
    assert tuple(range(50)) not in orders


def test_huge_data_sets_cost_nothing():
    order = shuffled(10**12, 1, 1, np.arange(10_000))
    assert len(np.unique(order)) == 10_000
    assert order.max() < 10**12
    # The mean of uniform numbers, within five standard errors.
    assert abs(order.mean() / 10**12 - 0.5) < 5 / np.sqrt(12 * 10_000)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_permutation_is_equally_likely(n):
    trials = 500 * n
    seen = Counter(tuple(shuffled(n, 7, epoch, np.arange(n))) for epoch in range(trials))
    assert set(seen) == set(permutations(range(n)))
    expected = trials / len(seen)
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
    freedom = len(seen) - 1
    # Five standard deviations above the mean of the chi-squared distribution.
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [5, 16, 17, 100])
def test_every_sample_is_equally_likely_everywhere(n):
    trials = 800
    table = np.zeros((n, n))
    for epoch in range(trials):
        table[np.arange(n), shuffled(n, 3, epoch, np.arange(n))] += 1
    chi2 = ((table - trials / n) ** 2 / (trials / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_order_never_changes():
    """A run that is resumed with a newer release must go on with the same samples."""
    assert shuffled(10, 0, 0, np.arange(10)).tolist() == RECORDED_10
    assert shuffled(10**9, 42, 3, np.array([0, 1, 10**9 - 1])).tolist() == RECORDED_HUGE


RECORDED_10 = [2, 7, 5, 6, 0, 9, 3, 8, 1, 4]
RECORDED_HUGE = [906669064, 745598712, 697254054]
