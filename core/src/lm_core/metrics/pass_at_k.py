"""The chance that one of k programs passes, estimated from n (Chen et al. 2021, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) for one problem.

    As a product of n - c factors below 1, so that no binomial overflows and nothing cancels.

    Args:
        samples: n, at least k.
        passed: c, from 0 to n.
        k: at least 1.
    """
    assert 1 <= k <= samples and 0 <= passed <= samples
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """The mean over problems, each (samples, passed) of which counts alike."""
    return float(np.mean([pass_at_k(samples, passed, k) for samples, passed in counts]))
