"""Causal multi-head self-attention: whole sequences, prefill of a cache, one cached step.

Keys and values of a cache are [B * N, C, D]: a step writes one row per head and reads them as a batched product, so nothing
is transposed while decoding.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.dropout import Dropout
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext

MASKED = -1e9
"""Added to the score of a position that must not be seen; exp(MASKED) is exactly 0 in every type that softmax runs in."""


class CausalSelfAttention(nn.Cell):
    """softmax(q k^T / sqrt(D) + causal mask) v, then `out` (Vaswani et al. 2017, section 3.2).

    Args:
        hidden: H.
        heads: N over all ranks; each tensor-parallel rank holds N / model_parallel of them.
        context: the ranks that share the heads.
        std: standard deviation of the initial q, k, v weights.
        out_std: the same of `out`.
        dropout: rate on the attention probabilities.
        site: number of the Dropout.
        softmax_type: type of the softmax.
        options: for the Linear layers (`bias`, `dtype`, `compute_dtype`).
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        context: ParallelContext,
        *,
        std: float,
        out_std: float,
        dropout: float,
        site: int,
        softmax_type: str = "float32",
        **options: object,
    ) -> None:
        super().__init__()
        self.heads = context.shard(heads, "heads")
        self.head_dim = hidden // heads
        self.scale = 1.0 / math.sqrt(self.head_dim)
        for name in ("q", "k", "v"):
            setattr(
                self,
                name,
                ColumnParallelLinear(
                    hidden, hidden, context, "attention columns", std=std, **options
                ),
            )
        self.out = RowParallelLinear(
            hidden, hidden, context, "attention rows", std=out_std, **options
        )
        self.dropout = Dropout(dropout, site)
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.scatter = ops.ScatterNdUpdate()

    def split(self, x: Tensor, batch: int) -> Tensor:
        """[B * S, N * D] -> [B * N, S, D]."""
        length = x.shape[0] // batch
        if length == 1:
            return x.reshape((batch * self.heads, 1, self.head_dim))
        x = x.reshape((batch, length, self.heads, self.head_dim)).transpose((0, 2, 1, 3))
        return x.reshape((batch * self.heads, length, self.head_dim))

    def merge(self, x: Tensor, batch: int) -> Tensor:
        """[B * N, S, D] -> [B * S, N * D]."""
        length = x.shape[1]
        if length > 1:
            x = x.reshape((batch, self.heads, length, self.head_dim)).transpose((0, 2, 1, 3))
        return x.reshape((batch * length, self.heads * self.head_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, key: Tensor) -> Tensor:
        """q: [B * N, Q, D], already scaled; k, v: [B * N, C, D]; mask: added to the scores. Returns [B * N, Q, D]."""
        probabilities = self.softmax((self.scores(q, k) + mask).astype(self.softmax_type)).astype(
            v.dtype
        )
        return self.mix(self.dropout(probabilities, key), v)

    def construct(self, x: Tensor, batch: int, key: Tensor) -> Tensor:
        """x: [B * S, H]; key: int32 scalar for dropout. Returns [B * S, H]."""
        q, k, v = (
            self.split(self.q(x) * self.scale, batch),
            self.split(self.k(x), batch),
            self.split(self.v(x), batch),
        )
        return self.out(self.merge(self.attend(q, k, v, causal_mask(q.shape[1]), key), batch))

    def prefill(self, x: Tensor, batch: int, k_cache: Parameter, v_cache: Parameter) -> Tensor:
        """As `construct`, and fills the caches [B * N, C, D] from position 0."""
        q, k, v = (
            self.split(self.q(x) * self.scale, batch),
            self.split(self.k(x), batch),
            self.split(self.v(x), batch),
        )
        y = self.attend(q, k, v, causal_mask(q.shape[1]), Tensor(0, ms.int32))
        ops.assign(k_cache, self.pad(k, k_cache.shape[1]))
        ops.assign(v_cache, self.pad(v, v_cache.shape[1]))
        return self.out(self.merge(y, batch))

    def pad(self, x: Tensor, capacity: int) -> Tensor:
        """[B * N, S, D] -> [B * N, C, D], zeros behind."""
        rows, length, width = x.shape
        if length == capacity:
            return x
        return ops.concat((x, ops.zeros((rows, capacity - length, width), x.dtype)), 1)

    def step(
        self, x: Tensor, k_cache: Parameter, v_cache: Parameter, index: Tensor, mask: Tensor
    ) -> Tensor:
        """One token per row.

        Args:
            x: [B, H].
            k_cache: [B * N, C, D], written in place.
            v_cache: the same.
            index: int32 [B * N, 2], (row of the cache, position to write).
            mask: [B * N, 1, C], 0 where the row may look and MASKED elsewhere.

        Returns:
            [B, H].
        """
        batch = x.shape[0]
        q = self.split(self.q(x) * self.scale, batch)
        k = self.scatter(k_cache, index, self.k(x).reshape((batch * self.heads, self.head_dim)))
        v = self.scatter(v_cache, index, self.v(x).reshape((batch * self.heads, self.head_dim)))
        probabilities = self.softmax((self.scores(q, k) + mask).astype(self.softmax_type)).astype(
            v.dtype
        )
        return self.out(self.merge(self.mix(probabilities, v), batch))


def causal_mask(length: int) -> Tensor:
    """float32 [S, S]: 0 on and below the diagonal, MASKED above."""
    return Tensor(np.triu(np.full((length, length), MASKED, np.float32), 1))
