"""The order of samples: a permutation that is computed, not stored.

`shuffled(n, seed, epoch, positions)` gives the samples at some positions of an epoch without
making the others, so a run resumes in the middle of an epoch of any size at once, with no memory.
It is a Feistel network (Luby and Rackoff 1988) over the next even power of two with cycle walking
(Black and Rogaway 2002), in integer arithmetic only: the same on every machine and for every
version of NumPy, whose own shuffling may change from release to release.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 8
# Bits of half a number: halves of one or two bits leave too few round functions to choose from.
_LEAST_HALF = 3
_MASK = (1 << 64) - 1


def shuffled(n: int, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """The samples (int64, each below `n`) at `positions` (each below `n`) of a shuffled epoch."""
    half = max(_LEAST_HALF, ((n - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    values = np.array(positions, np.uint64)
    values = _feistel(values, half, keys)
    # The network permutes [0, 4^half); following it from below n leads back below n, in fewer than
    # four steps on average from n = 17 up.
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    low = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return left << np.uint64(half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit of the result hangs on all."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _keys(seed: int, epoch: int) -> list[np.uint64]:
    """A key per round; different for every (seed, epoch)."""
    state = _scalar_mix(_scalar_mix(seed & _MASK) + epoch + 1)
    return [np.uint64(_scalar_mix(state + index * 0x9E3779B97F4A7C15)) for index in range(_ROUNDS)]


def _scalar_mix(value: int) -> int:
    return int(_mix(np.array([(value + 0x9E3779B97F4A7C15) & _MASK], np.uint64))[0])
