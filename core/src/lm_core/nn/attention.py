"""Causal self-attention with heads that may share keys and values (Ainslie et al. 2023).

N is the number of heads of this rank, G that of its heads of keys and values, R = N / G how many
share one; head n reads keys n // R. All R are rows of one product, [B * G, R * S, D], so keys are
never repeated. Keys and values of a cache are [B * G, C, D]: a step writes one row per head and
reads them as a batched product, so nothing is transposed while decoding.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn import block_sizes
from lm_core.nn.blockwise import (
    MASKED,
    BlockwiseAttention,
    DocumentBlocks,
    documents_apart,
    swapped,
)
from lm_core.nn.dropout import Dropout
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear, shared_input
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext


class _Attention(nn.Cell):
    """softmax(q k^T + causal mask) v for each head (Vaswani et al. 2017, section 3.2.1).

    It has a backward pass of its own for the sake of memory and time. On CPU, MindSpore's
    broadcasting subtraction (in Softmax's gradient) keeps 4 times its output for ever, and its
    Transpose a table of 8 bytes per element. So heads are split by a gather of rows, the mask is a
    bias, and with P = softmax(S), O = P V the gradient is

        dS = P * (dO V^T - rowsum(dO * O)),

    where the subtraction is one more column in the product: [dO, -rowsum] [V, 1]^T.

    Args:
        heads: N of this rank.
        kv_heads: G of this rank.
        dropout: of the probabilities.
        softmax_type: type of the softmax ("float32", ...).
    """

    def __init__(
        self, heads: int, kv_heads: int, dropout: Dropout, softmax_type: str = "float32"
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.dropout = dropout
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.product_at = ops.BatchMatMul(transpose_a=True)
        self.add_mask = ops.BiasAdd()
        self.row_sum = ops.ReduceSum(keep_dims=True)
        self.gather = ops.Gather()

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[B, S, heads * D] -> [B * heads, S, D]."""
        batch, length, width = x.shape
        rows = x.reshape((batch * length * heads, width // heads))
        if length > 1:
            rows = self.gather(rows, swapped(batch, length, heads), 0)
        return rows.reshape((batch * heads, length, width // heads))

    def merge(self, x: Tensor, batch: int, heads: int) -> Tensor:
        """[B * heads, S, D], in any shape -> [B, S, heads * D]."""
        width = x.shape[-1]
        length = x.size // (batch * heads * width)
        flat = x.reshape((batch * heads * length, width))
        if length > 1:
            flat = self.gather(flat, swapped(batch, heads, length), 0)
        return flat.reshape((batch, length, heads * width))

    def grouped(self, x: Tensor) -> Tensor:
        """[B * N, S, D] -> [B * G, R * S, D]: the queries that read one head's keys together."""
        rows, length, width = x.shape
        shared = self.heads // self.kv_heads
        return x if shared == 1 else x.reshape((rows // shared, shared * length, width))

    def probabilities(self, q: Tensor, k: Tensor, segments: tuple[Tensor, ...]) -> Tensor:
        """q: [B * G, R * S, D]; k: [B * G, S, D]. Returns [B * G, R * S, S]."""
        groups, queries, _ = q.shape
        length = k.shape[1]
        scores = self.product_bt(q, k).astype(self.softmax_type)
        scores = self.add_mask(
            scores.reshape((groups * queries // length, length * length)),
            causal_mask(length, self.softmax_type),
        )
        if len(segments) == 1:
            scores = documents_apart(scores, segments[0], segments[0])
        return self.softmax(scores.reshape((groups, queries, length))).astype(q.dtype)

    def dropped(self, p: Tensor, key: Tensor) -> Tensor:
        """Dropout of [B * G, R * S, S]; its masks follow the order [B * N, S, S]."""
        if not self.dropout.active():
            return p
        length = p.shape[-1]
        return self.dropout(p.reshape((-1, length, length)), key).reshape(p.shape)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key: Tensor, segments: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Attends.

        Args:
            q: [B, S, N * D], already divided by sqrt(D).
            k: [B, S, G * D].
            v: the same.
            key: of `dropout_key`.
            segments: one of int32 [B, S], the documents of records, or none.

        Returns:
            the mixed values [B, S, N * D]; what a cache needs, k and v [B * G, S, D]; and what the
            backward pass needs: the probabilities [B * G, R * S, S], q and the mixed values, both
            [B * G, R * S, D].
        """
        batch = q.shape[0]
        q = self.grouped(self.split(q, self.heads))
        k, v = self.split(k, self.kv_heads), self.split(v, self.kv_heads)
        p = self.probabilities(q, k, segments)
        mixed = self.product(self.dropped(p, key), v)
        return self.merge(mixed, batch, self.heads), k, v, p, q, mixed

    def backward(
        self, key: Tensor, out: tuple[Tensor, ...], d_merged: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, from what `forward` returned and the gradient of its first."""
        _, k, v, p, q, mixed = out
        batch = d_merged.shape[0]
        d_mixed = self.grouped(self.split(d_merged, self.heads))
        # Else the mask would be found equal to that of the forward pass, and be kept from there.
        key = ops.depend(key, d_mixed)
        less = -self.row_sum(d_mixed * mixed, -1)
        ones = ops.ones((v.shape[0], v.shape[1], 1), v.dtype)
        if self.dropout.active():
            d_p = self.dropped(self.product_bt(d_mixed, v), key) + self.product_bt(less, ones)
        else:
            d_p = self.product_bt(ops.concat((d_mixed, less), -1), ops.concat((v, ones), -1))
        d_scores = p * d_p
        return (
            self.merge(self.product(d_scores, k), batch, self.heads),
            self.merge(self.product_at(d_scores, q), batch, self.kv_heads),
            self.merge(self.product_at(self.dropped(p, key), d_mixed), batch, self.kv_heads),
        )


class CausalAttention(_Attention):
    """Attention within records."""

    def construct(self, q: Tensor, k: Tensor, v: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """See `forward`."""
        return self.forward(q, k, v, key, ())

    def bprop(
        self,
        q0: Tensor,
        k0: Tensor,
        v0: Tensor,
        key: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Gradients of q, k and v; only the first output is differentiated."""
        return (*self.backward(key, out, dout[0]), ops.zeros_like(key))


class DocumentAttention(_Attention):
    """Attention within each of the documents that a record holds."""

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, key: Tensor, segments: Tensor
    ) -> tuple[Tensor, ...]:
        """See `forward`; segments: int32 [B, S], the number of each token's document."""
        return self.forward(q, k, v, key, (segments,))

    def bprop(
        self,
        q0: Tensor,
        k0: Tensor,
        v0: Tensor,
        key: Tensor,
        segments: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        found = self.backward(key, out, dout[0])
        return (*found, ops.zeros_like(key), ops.zeros_like(segments))


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
        kv_heads: G over all ranks; None: as many as heads. Where there are more ranks than these,
            neighbours hold the same one.
        rotate: turns queries and keys by their positions.
        blockwise: never hold all probabilities at once (where no dropout forbids it).
        softmax_type: type of the softmax.
        qkv_bias: q, k and v have biases; None: as `bias` says.
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
        kv_heads: int | None = None,
        rotate: nn.Cell | None = None,
        blockwise: bool = False,
        softmax_type: str = "float32",
        qkv_bias: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.heads = context.shard(heads, "heads")
        self.head_dim = hidden // heads
        shared = kv_heads or heads
        self.kv_heads = max(1, shared // context.model_parallel)
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.enter = shared_input(context)
        own: dict[str, Any] = {
            **options,
            "bias": options["bias"] if qkv_bias is None else qkv_bias,
            "std": std,
        }
        columns = "attention columns"
        self.q = ColumnParallelLinear(hidden, hidden, context, columns, **own)
        width = shared * self.head_dim
        self.k = ColumnParallelLinear(hidden, width, context, columns, groups=shared, **own)
        self.v = ColumnParallelLinear(hidden, width, context, columns, groups=shared, **own)
        self.out = RowParallelLinear(
            hidden, hidden, context, "attention rows", std=out_std, **options
        )
        self.rotate = rotate
        probabilities = Dropout(
            dropout, site, heads=heads, own_heads=(context.tp_rank * self.heads, self.heads)
        )
        shape = (self.heads, self.kv_heads)
        self.attend = CausalAttention(*shape, probabilities, softmax_type)
        self.attend_documents = DocumentAttention(*shape, probabilities, softmax_type)
        self.blocks = BlockwiseAttention(*shape, softmax_type)
        self.document_blocks = DocumentBlocks(*shape, softmax_type)
        self.blockwise = blockwise
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.scatter = ops.ScatterNdUpdate()

    def queries_and_keys(self, x: Tensor, rotary: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """x: [T, H]. Returns q, divided by sqrt(D), and k: [T, N * D], [T, G * D]."""
        q, k = self.q(x), self.k(x)
        if self.rotate is None:
            return q * self.scale, k
        tokens = x.shape[0]
        # The tables of queries hold the scale already.
        cos_q, sin_q, cos_k, sin_k = rotary
        q = self.rotate(q.reshape((tokens * self.heads, self.head_dim)), cos_q, sin_q)
        k = self.rotate(k.reshape((tokens * self.kv_heads, self.head_dim)), cos_k, sin_k)
        return (
            q.reshape((tokens, self.heads * self.head_dim)),
            k.reshape((tokens, self.kv_heads * self.head_dim)),
        )

    def whole(
        self,
        x: Tensor,
        batch: int,
        key: Tensor,
        rotary: tuple[Tensor, ...],
        segments: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """x: [B * S, H]. Returns the first three that CausalAttention does, or all."""
        x = self.enter(x)
        length = x.shape[0] // batch
        q, k = self.queries_and_keys(x, rotary)
        q = q.reshape((batch, length, self.heads * self.head_dim))
        k = k.reshape((batch, length, self.kv_heads * self.head_dim))
        v = self.v(x).reshape((batch, length, self.kv_heads * self.head_dim))
        if self.in_blocks(length):
            groups = self.kv_heads
            mixed = self.document_blocks(q, k, v, *segments) if segments else self.blocks(q, k, v)
            return mixed, self.blocks.split(k, groups), self.blocks.split(v, groups)
        if segments:
            return self.attend_documents(q, k, v, key, *segments)
        return self.attend(q, k, v, key)

    def in_blocks(self, length: int) -> bool:
        """Whether sequences of this length are read block by block."""
        return block_sizes.are_read(
            length,
            asked=self.blockwise,
            dropped=self.attend.dropout.active(),
            trains=self.training,
        )

    def construct(
        self,
        x: Tensor,
        batch: int,
        key: Tensor,
        rotary: tuple[Tensor, ...] = (),
        segments: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Attends within whole records.

        Args:
            x: [B * S, H].
            batch: B.
            key: of `dropout_key`.
            rotary: of `CausalLM.rotary_tables`.
            segments: one of int32 [B, S], the documents of each record, or none.

        Returns:
            [B * S, H].
        """
        mixed = self.whole(x, batch, key, rotary, segments)[0]
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))

    def prefill(
        self,
        x: Tensor,
        batch: int,
        k_cache: Parameter,
        v_cache: Parameter,
        rotary: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """As `construct`, and fills the caches [B * G, C, D] from position 0."""
        found = self.whole(x, batch, Tensor(np.zeros(2, np.int32)), rotary, ())
        ops.assign(k_cache, self.pad(found[1], k_cache.shape[1]))
        ops.assign(v_cache, self.pad(found[2], v_cache.shape[1]))
        return self.out(found[0].reshape((x.shape[0], self.heads * self.head_dim)))

    def pad(self, x: Tensor, capacity: int) -> Tensor:
        """[B * G, S, D] -> [B * G, C, D], zeros behind."""
        rows, length, width = x.shape
        if length == capacity:
            return x
        return ops.concat((x, ops.zeros((rows, capacity - length, width), x.dtype)), 1)

    def step(
        self,
        x: Tensor,
        k_cache: Parameter,
        v_cache: Parameter,
        index: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """One token per row.

        Args:
            x: [B, H].
            k_cache: [B * G, C, D], written in place.
            v_cache: the same.
            index: int32 [B * G, 2], (row of the cache, position to write).
            mask: [B * G, 1, C], 0 where the row may look and MASKED elsewhere.
            rotary: of `CausalLM.rotary_matrices`.

        Returns:
            [B, H].
        """
        rows = x.shape[0] * self.kv_heads
        q, k = self.q(x), self.k(x)
        if self.rotate is None:
            q = q * self.scale
        else:
            # The matrix of queries holds the scale already.
            q = self.product(q.reshape((-1, self.heads, self.head_dim)), rotary[0])
            k = self.product(k.reshape((-1, self.kv_heads, self.head_dim)), rotary[1])
        q = q.reshape((rows, self.heads // self.kv_heads, self.head_dim))
        k = self.scatter(k_cache, index, k.reshape((rows, self.head_dim)))
        v = self.scatter(v_cache, index, self.v(x).reshape((rows, self.head_dim)))
        scores = self.product_bt(q, k).astype(self.softmax_type) + mask
        mixed = self.product(self.softmax(scores).astype(v.dtype), v)
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))


def causal_mask(length: int, dtype: ms.Type = ms.float32) -> Tensor:
    """[S * S], row by row: 0 on and below the diagonal, MASKED above."""
    return Tensor(np.triu(np.full((length, length), MASKED, np.float32), 1).reshape(-1), dtype)
