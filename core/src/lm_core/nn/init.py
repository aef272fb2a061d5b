"""Initial values from (seed, parameter name, full shape): every parallel layout starts alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from lm_core.parallel.partition import WHOLE, Cut

_SKIP: ContextVar[bool] = ContextVar("skip_initial_values", default=False)


@contextmanager
def no_initial_values() -> Iterator[None]:
    """Models built inside hold zeros: for weights that a checkpoint is about to overwrite."""
    token = _SKIP.set(True)
    try:
        yield
    finally:
        _SKIP.reset(token)


def skip_initial_values() -> bool:
    """True inside `no_initial_values()`."""
    return _SKIP.get()


def normal_part(
    seed: int, name: str, shape: tuple[int, ...], std: float, cut: Cut = WHOLE, tp_rank: int = 0
) -> np.ndarray:
    """A rank's part, of this shape, of what `normal` gives for the whole parameter."""
    if cut.dim is None:
        return normal(seed, name, shape, std)
    whole = tuple(n * cut.parts if dim == cut.dim else n for dim, n in enumerate(shape))
    values = normal(seed, name, whole, std)
    return np.split(values, cut.parts, cut.dim)[tp_rank].copy()


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 draws from N(0, std^2), the same in every process for (seed, name, shape)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values
