"""Causal multi-head self-attention: whole sequences, prefill of a cache, one cached step.

N is the number of heads of this rank. Keys and values of a cache are [B * N, C, D]: a step writes
one row per head and reads them as a batched product, so nothing is transposed while decoding.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.dropout import Dropout
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear, shared_input
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext

MASKED = -1e9
"""Added to the score of a position that must not be seen; exp(MASKED) is 0 in every float type."""


class CausalAttention(nn.Cell):
    """softmax(q k^T + causal mask) v for each head (Vaswani et al. 2017, section 3.2.1).

    It has a backward pass of its own for the sake of memory and time. On CPU, MindSpore's
    broadcasting subtraction (in Softmax's gradient) keeps 4 times its output for ever, and its
    Transpose a table of 8 bytes per element. So heads are split by a gather of rows, the mask is a
    bias, and with P = softmax(S), O = P V the gradient is

        dS = P * (dO V^T - rowsum(dO * O)),

    where the subtraction is one more column in the product: [dO, -rowsum] [V, 1]^T.

    Args:
        heads: N of this rank.
        dropout: of the probabilities.
        softmax_type: type of the softmax ("float32", ...).
    """

    def __init__(self, heads: int, dropout: Dropout, softmax_type: str = "float32") -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.product_at = ops.BatchMatMul(transpose_a=True)
        self.add_mask = ops.BiasAdd()
        self.row_sum = ops.ReduceSum(keep_dims=True)
        self.gather = ops.Gather()

    def split(self, x: Tensor) -> Tensor:
        """[B, S, N * D] -> [B * N, S, D]."""
        batch, length, width = x.shape
        rows = x.reshape((batch * length * self.heads, width // self.heads))
        if length > 1:
            rows = self.gather(rows, _swapped(batch, length, self.heads), 0)
        return rows.reshape((batch * self.heads, length, width // self.heads))

    def merge(self, x: Tensor) -> Tensor:
        """[B * N, S, D] -> [B, S, N * D]."""
        rows, length, width = x.shape
        batch = rows // self.heads
        flat = x.reshape((rows * length, width))
        if length > 1:
            flat = self.gather(flat, _swapped(batch, self.heads, length), 0)
        return flat.reshape((batch, length, self.heads * width))

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k: [B * N, S, D]. Returns [B * N, S, S]."""
        rows, length, _ = q.shape
        scores = self.product_bt(q, k).astype(self.softmax_type)
        scores = self.add_mask(
            scores.reshape((rows, length * length)), causal_mask(length, self.softmax_type)
        )
        return self.softmax(scores.reshape((rows, length, length))).astype(q.dtype)

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Attends.

        Args:
            q: [B, S, N * D], already divided by sqrt(D).
            k: the same.
            v: the same.
            key: of `dropout_key`.

        Returns:
            the mixed values [B, S, N * D], and what the backward pass and a cache need: the
            probabilities [B * N, S, S], q, k, v and the mixed values as [B * N, S, D].
        """
        q, k, v = self.split(q), self.split(k), self.split(v)
        p = self.probabilities(q, k)
        mixed = self.product(self.dropout(p, key), v)
        return self.merge(mixed), p, q, k, v, mixed

    def bprop(
        self,
        q0: Tensor,
        k0: Tensor,
        v0: Tensor,
        key: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of q, k and v; only the first output is differentiated."""
        _, p, q, k, v, mixed = out
        d_mixed = self.split(dout[0])
        # Else the mask would be found equal to that of the forward pass, and be kept from there.
        key = ops.depend(key, d_mixed)
        less = -self.row_sum(d_mixed * mixed, -1)
        ones = ops.ones((v.shape[0], v.shape[1], 1), v.dtype)
        if self.dropout.active():
            d_p = self.dropout(self.product_bt(d_mixed, v), key) + self.product_bt(less, ones)
        else:
            d_p = self.product_bt(ops.concat((d_mixed, less), -1), ops.concat((v, ones), -1))
        d_scores = p * d_p
        return (
            self.merge(self.product(d_scores, k)),
            self.merge(self.product_at(d_scores, q)),
            self.merge(self.product_at(self.dropout(p, key), d_mixed)),
            ops.zeros_like(key),
        )


class CausalSelfAttention(nn.Cell):
    """Projections to heads, attention, projection back.

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
        columns = "attention columns"
        self.enter = shared_input(context)
        self.q = ColumnParallelLinear(hidden, hidden, context, columns, std=std, **options)
        self.k = ColumnParallelLinear(hidden, hidden, context, columns, std=std, **options)
        self.v = ColumnParallelLinear(hidden, hidden, context, columns, std=std, **options)
        self.out = RowParallelLinear(
            hidden, hidden, context, "attention rows", std=out_std, **options
        )
        own = (context.tp_rank * self.heads, self.heads)
        probabilities = Dropout(dropout, site, heads=heads, own_heads=own)
        self.attend = CausalAttention(self.heads, probabilities, softmax_type)
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.scatter = ops.ScatterNdUpdate()

    def whole(self, x: Tensor, batch: int, key: Tensor) -> tuple[Tensor, ...]:
        """x: [B * S, H]. Returns what CausalAttention does."""
        x = self.enter(x)
        shape = (batch, x.shape[0] // batch, self.heads * self.head_dim)
        q = (self.q(x) * self.scale).reshape(shape)
        return self.attend(q, self.k(x).reshape(shape), self.v(x).reshape(shape), key)

    def construct(self, x: Tensor, batch: int, key: Tensor) -> Tensor:
        """x: [B * S, H]; key: of `dropout_key`. Returns [B * S, H]."""
        mixed = self.whole(x, batch, key)[0]
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))

    def prefill(self, x: Tensor, batch: int, k_cache: Parameter, v_cache: Parameter) -> Tensor:
        """As `construct`, and fills the caches [B * N, C, D] from position 0."""
        mixed, _, _, k, v, _ = self.whole(x, batch, Tensor(np.zeros(2, np.int32)))
        ops.assign(k_cache, self.pad(k, k_cache.shape[1]))
        ops.assign(v_cache, self.pad(v, v_cache.shape[1]))
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))

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
        rows = x.shape[0] * self.heads
        q = (self.q(x) * self.scale).reshape((rows, 1, self.head_dim))
        k = self.scatter(k_cache, index, self.k(x).reshape((rows, self.head_dim)))
        v = self.scatter(v_cache, index, self.v(x).reshape((rows, self.head_dim)))
        scores = self.product_bt(q, k).astype(self.softmax_type) + mask
        mixed = self.product(self.softmax(scores).astype(v.dtype), v)
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))


def causal_mask(length: int, dtype: ms.Type = ms.float32) -> Tensor:
    """[S * S], row by row: 0 on and below the diagonal, MASKED above."""
    return Tensor(np.triu(np.full((length, length), MASKED, np.float32), 1).reshape(-1), dtype)


def _swapped(batch: int, first: int, second: int) -> Tensor:
    """int32 row numbers that bring rows in the order (B, first, second) to (B, second, first)."""
    count = batch * first * second
    order = np.arange(count, dtype=np.int32).reshape(batch, first, second).transpose(0, 2, 1)
    return Tensor(order.reshape(-1))
