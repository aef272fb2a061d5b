"""Attention with linear biases (Press et al. 2022): keys count less the further they are behind."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def slopes(heads: int) -> np.ndarray:
    """float64 [N]: what the score of each head loses for every position between key and query.

    For a power of two 2^(-8 k / N), k = 1 ... N. Other numbers have those of the next smaller power
    of two, and then every second of the next larger one, from its first on (section 3 of the paper,
    and the authors' program).
    """
    below = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8.0 * np.arange(1, below + 1) / below)
    more = 2.0 ** (-4.0 * np.arange(1, 2 * (heads - below), 2) / below)
    return np.concatenate([first, more])


class LinearBias(nn.Cell):
    """Adds the biases, and hides what is hidden, in one: heads differ by a factor only.

    Args:
        own: float64 [N], slopes of the heads of this rank.
        dtype: type of the scores.
    """

    def __init__(self, own: np.ndarray, dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.heads, self.dtype = len(own), dtype
        self.column = Tensor(own.astype(np.float32).reshape(-1, 1))
        self.spread = ops.MatMul()
        self.add = ops.BiasAdd()

    def construct(self, scores: Tensor, distances: Tensor) -> Tensor:
        """Adds them to scores of the same places of all records.

        Args:
            scores: [B * N, P].
            distances: float32 [P], position of the key less that of the query, which float32 has
                exactly; far below 0 where nothing must be seen.

        Returns:
            the shape of scores.
        """
        bias = (
            self.spread(self.column, distances.reshape((1, -1))).astype(self.dtype).reshape((-1,))
        )
        shape = scores.shape
        return self.add(scores.reshape((shape[0] // self.heads, -1)), bias).reshape(shape)
