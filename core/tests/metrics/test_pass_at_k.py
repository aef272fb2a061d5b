"""pass@k against counting all choices."""

from __future__ import annotations

from itertools import combinations

import pytest

from lm_core.metrics.pass_at_k import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("samples", range(1, 9))
def test_it_is_the_share_of_choices_with_one_that_passed(samples):
    for passed in range(samples + 1):
        for k in range(1, samples + 1):
            choices = list(combinations(range(samples), k))
            share = sum(min(choice) < passed for choice in choices) / len(choices)
            assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-12)


def test_large_numbers_neither_overflow_nor_cancel():
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-9)
    assert pass_at_k(2000, 1000, 1000) == 1.0
    assert pass_at_k(10**5, 3, 50_000) == pytest.approx(0.875, abs=1e-4)


def test_problems_count_alike():
    assert mean_pass_at_k([(10, 0), (2, 1)], 1) == pytest.approx(0.25)
