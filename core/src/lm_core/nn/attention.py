"""Causal self-attention with heads that may share keys and values (Ainslie et al. 2023).

N is the number of heads of this rank, G that of its heads of keys and values, R = N / G how many
share one; head n reads keys n // R. All R are rows of one product, [B * G, R * S, D], so keys are
never repeated. Keys and values of a cache are [B * G, C, D]: a step writes one row per head and
reads them as a batched product, so nothing is transposed while decoding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn import block_sizes
from lm_core.nn.alibi import slopes
from lm_core.nn.blockwise import BlockwiseAttention, DocumentBlocks
from lm_core.nn.causal import CausalAttention, DocumentAttention
from lm_core.nn.dropout import Dropout
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear, shared_input
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext


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
        head_dim: D; None: H / N.
        rotate: turns queries and keys by their positions.
        linear_biases: scores fall with the distance (`lm_core.nn.alibi`).
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
        head_dim: int | None = None,
        rotate: nn.Cell | None = None,
        linear_biases: bool = False,
        blockwise: bool = False,
        softmax_type: str = "float32",
        qkv_bias: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.heads = context.shard(heads, "heads")
        self.head_dim = head_dim or hidden // heads
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
        self.q = ColumnParallelLinear(hidden, heads * self.head_dim, context, columns, **own)
        width = shared * self.head_dim
        self.k = ColumnParallelLinear(hidden, width, context, columns, groups=shared, **own)
        self.v = ColumnParallelLinear(hidden, width, context, columns, groups=shared, **own)
        self.out = RowParallelLinear(
            heads * self.head_dim, hidden, context, "attention rows", std=out_std, **options
        )
        self.rotate = rotate
        probabilities = Dropout(
            dropout, site, heads=heads, own_heads=(context.tp_rank * self.heads, self.heads)
        )
        shape = (self.heads, self.kv_heads)
        first = context.tp_rank * self.heads
        self.slopes = slopes(heads)[first : first + self.heads] if linear_biases else None
        whole = (*shape, probabilities, softmax_type, self.slopes)
        self.attend, self.attend_documents = CausalAttention(*whole), DocumentAttention(*whole)
        blocks = (*shape, softmax_type, self.slopes)
        self.blocks, self.document_blocks = BlockwiseAttention(*blocks), DocumentBlocks(*blocks)
        self.blockwise = blockwise
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.scatter = ops.ScatterNdUpdate()
        self.gather = ops.Gather()

    def query_input(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """What queries are computed from, [T, H]: the same as keys, unless a model has its own."""
        return x

    def queries_and_keys(self, x: Tensor, tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """x: [T, H]. Returns q, divided by sqrt(D), and k: [T, N * D], [T, G * D]."""
        q, k = self.q(self.query_input(x, tables)), self.k(x)
        if self.rotate is None:
            return q * self.scale, k
        tokens = x.shape[0]
        # The tables of queries hold the scale already.
        cos_q, sin_q, cos_k, sin_k = tables
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
        tables: tuple[Tensor, ...],
        segments: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """x: [B * S, H]. Returns the first three that CausalAttention does, or all."""
        x = self.enter(x)
        length = x.shape[0] // batch
        q, k = self.queries_and_keys(x, tables)
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
        tables: tuple[Tensor, ...] = (),
        segments: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Attends within whole records.

        Args:
            x: [B * S, H].
            batch: B.
            key: of `dropout_key`.
            tables: of `CausalLM.position_tables`.
            segments: one of int32 [B, S], the documents of each record, or none.

        Returns:
            [B * S, H].
        """
        mixed = self.whole(x, batch, key, tables, segments)[0]
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))

    def prefill(
        self,
        x: Tensor,
        batch: int,
        k_cache: Parameter,
        v_cache: Parameter,
        tables: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """As `construct`, and fills the caches [B * G, C, D] from position 0."""
        found = self.whole(x, batch, Tensor(np.zeros(2, np.int32)), tables, ())
        ops.assign(k_cache, self.pad(found[1], k_cache.shape[1]).astype(k_cache.dtype))
        ops.assign(v_cache, self.pad(found[2], v_cache.shape[1]).astype(v_cache.dtype))
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
        index: Tensor | tuple[Tensor, ...],
        mask: Tensor,
        tables: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """One token per row.

        Args:
            x: [B, H].
            k_cache: [B * G, C, D], written in place.
            v_cache: the same.
            index: int32 [B * G, 2], (row of the cache, position to write); a tuple is for `steps`.
            mask: of `CausalLM.cache_mask`.
            tables: of `CausalLM.step_tables`.

        Returns:
            [B, H].
        """
        if isinstance(index, tuple):
            return self.steps(x, k_cache, v_cache, index, mask, tables)
        rows = x.shape[0] * self.kv_heads
        q, k = self.q(self.query_input(x, tables)), self.k(x)
        if self.rotate is None:
            q = q * self.scale
        else:
            # The matrix of queries holds the scale already.
            q, k = q.astype(tables[0].dtype), k.astype(tables[1].dtype)
            q = self.product(q.reshape((-1, self.heads, self.head_dim)), tables[0])
            k = self.product(k.reshape((-1, self.kv_heads, self.head_dim)), tables[1])
        q = q.reshape((rows, self.heads // self.kv_heads, self.head_dim))
        k = self.write(k_cache, index, k)
        v = self.write(v_cache, index, self.v(x))
        scores = self.product_bt(q.astype(k.dtype), k).astype(self.softmax_type) + mask
        mixed = self.product(self.softmax(scores).astype(v.dtype), v).astype(x.dtype)
        return self.out(mixed.reshape((x.shape[0], self.heads * self.head_dim)))

    def write(self, cache: Parameter, index: Tensor, x: Tensor) -> Tensor:
        """Writes keys or values, [T, G * D] or any shape of as many, into a cache; returns that."""
        return self.scatter(cache, index, x.reshape((-1, self.head_dim)).astype(cache.dtype))

    def steps(
        self,
        x: Tensor,
        k_cache: Parameter,
        v_cache: Parameter,
        index: tuple[Tensor, ...],
        mask: Tensor,
        tables: tuple[Tensor, ...],
    ) -> Tensor:
        """Several tokens per row; B, at most the rows of the cache, and S need not be known.

        Args:
            x: [B * S, H].
            k_cache: [rows * G, C, D], written in place.
            v_cache: the same.
            index: int32 [B * S * G, 2], (row of the cache, position to write); and int32 [B * G],
                the rows that are used, where there may be others.
            mask: float32 [B, 1, S, C], or with linear biases [B, N, S, C].
            tables: of `CausalLM.position_tables`.

        Returns:
            [B * S, H].
        """
        batch, _, length, capacity = mask.shape
        rows, width = batch * self.kv_heads, self.head_dim
        q, k = self.queries_and_keys(x, tables)
        k, v = self.write(k_cache, index[0], k), self.write(v_cache, index[0], self.v(x))
        if len(index) == 2:
            k, v = self.gather(k, index[1], 0), self.gather(v, index[1], 0)
        q = q.reshape((batch, length, self.heads, width)).transpose((0, 2, 1, 3))
        q = q.reshape((rows, -1, width)).astype(k.dtype)
        scores = self.product_bt(q, k).astype(self.softmax_type)
        scores = scores.reshape((batch, self.heads, length, capacity)) + mask
        p = self.softmax(scores).astype(v.dtype).reshape((rows, -1, capacity))
        mixed = self.product(p, v).reshape((batch, self.heads, length, width))
        mixed = mixed.transpose((0, 2, 1, 3)).reshape((-1, self.heads * width))
        return self.out(mixed.astype(x.dtype))
