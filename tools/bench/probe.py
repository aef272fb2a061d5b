"""How fast this machine reads memory at this moment."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

MEGABYTES = 192


@cache
def _buffers(threads: int) -> list[np.ndarray]:
    return [np.ones(MEGABYTES << 18, np.float32) for _ in range(threads)]


def read_bandwidth(threads: int = 2) -> float:
    """Bytes per second that `threads` threads read together: the best of four passes."""
    buffers, best = _buffers(threads), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(4):
            start = time.perf_counter()
            list(pool.map(np.sum, buffers))
            seconds = time.perf_counter() - start
            best = max(best, sum(buffer.nbytes for buffer in buffers) / seconds)
    return best
