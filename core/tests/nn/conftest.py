"""Runs layers as compiled graphs and gives gradients as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn

from lm_core.parallel import backend


class _Scored(nn.Cell):
    """sum(weights * first output): a scalar whose gradient is the weights."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        out = self.cell(*inputs)
        first = out[0] if isinstance(out, tuple) else out
        return (first * weights).sum()


class _Gradients(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        weights = ParameterTuple(cell.trainable_params())
        self.grad = ms.grad(_Scored(cell), grad_position=1, weights=weights or None)

    def construct(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        return self.grad(weights, *inputs)


@pytest.fixture(autouse=True, scope="session")
def _graph_mode() -> None:
    backend.setup()


@pytest.fixture
def gradients() -> Callable[..., tuple[np.ndarray, list[np.ndarray]]]:
    """`gradients(cell, d_out, x, ...)` -> d_x, [d_parameter, ...] of sum(d_out * cell(x, ...))."""

    def run(
        cell: nn.Cell, d_out: np.ndarray, *inputs: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        found = _Gradients(cell)(Tensor(d_out.astype(np.float32)), *map(Tensor, inputs))
        if not isinstance(found, tuple):
            return found.asnumpy(), []
        return found[0].asnumpy(), [gradient.asnumpy() for gradient in found[1]]

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
