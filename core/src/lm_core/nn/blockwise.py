"""Causal attention whose memory does not grow with the square of the length.

Queries are read in blocks, one after the other in a loop of the compiled graph; a block's
probabilities are computed, used, and forgotten (Rabe and Staats 2021). The backward pass computes
them again. A block sees all keys that its band of the sequence may see, so its softmax is an
ordinary one, and no running maximum is needed (unlike Dao et al. 2022, who keep blocks in a small
fast memory that a CPU does not have).

A loop has one shape: with keys of all positions half of the products would be for what causality
hides. So the sequence is cut into a few bands, each a loop of its own, with the keys up to its end:
with 4 bands 5/8 of the whole square is computed, of which 1/2 is needed.

Rows change places by a gather: MindSpore's Transpose keeps a table of 8 bytes per element on CPU,
for each of the 17 that a block of the network would have.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.primitive import constexpr

from lm_core.nn import block_sizes
from lm_core.nn.alibi import LinearBias
from lm_core.parallel import backend

MASKED = -1e9
"""Added to the score of a position that must not be seen; exp(MASKED) is 0 in every float type."""
block_size, bands = constexpr(block_sizes.size), constexpr(block_sizes.bands)


class _Blocks(nn.Cell):
    """As `CausalAttention` without dropout.

    Args:
        heads: N of this rank.
        kv_heads: G of this rank.
        softmax_type: type of the softmax.
        slopes: of the linear biases of these heads (`lm_core.nn.alibi`); None: there are none.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        softmax_type: str = "float32",
        slopes: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.softmax_type = backend.compute_dtype(softmax_type)
        self.softmax = ops.Softmax(-1)
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.product_at = ops.BatchMatMul(transpose_a=True)
        self.add_mask = ops.BiasAdd()
        self.linear_bias = None if slopes is None else LinearBias(slopes, self.softmax_type)
        self.on_cpu = backend.on_cpu()
        self.spread, self.clamp = ops.MatMul(), ops.ReLU6()
        self.row_sum = ops.ReduceSum(keep_dims=True)
        self.gather = ops.Gather()
        self.update = ops.TensorScatterUpdate()

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[B, S, heads * D] -> [B * heads, S, D]."""
        batch, length, width = x.shape
        x = x.reshape((batch * length * heads, width // heads))
        x = self.gather(x, swapped(batch, length, heads), 0)
        return x.reshape((batch * heads, length, width // heads))

    def merge(self, x: Tensor, batch: int) -> Tensor:
        """[B * heads, S, D] -> [B, S, heads * D]."""
        rows, length, width = x.shape
        x = self.gather(x.reshape((rows * length, width)), swapped(batch, rows // batch, length), 0)
        return x.reshape((batch, length, rows // batch * width))

    def blocks(self, x: Tensor, start: int, end: int, size: int) -> Tensor:
        """[B * N, S, D] -> the blocks of a band, [n, B * G, R * size, D], zeros behind."""
        rows, _, width = x.shape
        count = -(-(end - start) // size)
        band = x[:, start:end]
        missing = count * size - (end - start)
        if missing:
            band = ops.concat((band, ops.zeros((rows, missing, width), x.dtype)), 1)
        band = self.gather(band.reshape((rows * count, size * width)), swapped(1, rows, count), 0)
        groups = rows * self.kv_heads // self.heads
        return band.reshape((count, groups, rows // groups * size, width))

    def band(self, x: Tensor, length: int) -> Tensor:
        """What `blocks` took apart: [n, B * G, R * size, D] -> [B * N, length, D]."""
        count, groups, queries, width = x.shape
        shared = self.heads // self.kv_heads
        x = x.reshape((count * groups * shared, queries // shared * width))
        x = self.gather(x, swapped(1, count, groups * shared), 0)
        x = x.reshape((groups * shared, count * queries // shared, width))
        return x[:, :length]

    def probabilities(
        self, q: Tensor, k: Tensor, first: Tensor, segments: tuple[Tensor, ...]
    ) -> Tensor:
        """Of one block.

        Args:
            q: [B * G, R * size, D].
            k: [B * G, K, D].
            first: int32, position of the first query.
            segments: one of int32 [B, n * size], the documents of tokens, or none.

        Returns:
            [B * G, R * size, K].
        """
        groups, queries, _ = q.shape
        keys = k.shape[1]
        size = queries * self.kv_heads // self.heads
        scores = self.product_bt(q, k).astype(self.softmax_type)
        scores = scores.reshape((groups * queries // size, size * keys))
        ahead = self.ahead(size, keys, first)
        mask = self.clamp(ahead * 6.0) * (MASKED / 6.0)  # 6 at least is 6
        if self.linear_bias is None:
            scores = self.add_mask(scores, mask.astype(self.softmax_type).reshape((-1,)))
        else:
            scores = self.linear_bias(scores, (ahead + mask).reshape((-1,)))
        if len(segments) == 1:
            batch = segments[0].shape[0]
            blocks = segments[0].reshape((batch, -1, size))
            own = ops.gather(blocks, ops.FloorDiv()(first, Tensor(size, ms.int32)), 1)
            scores = documents_apart(scores, own, segments[0][:, :keys])
        return self.softmax(scores.reshape((groups, queries, keys))).astype(q.dtype)

    def ahead(self, size: int, keys: int, first: Tensor) -> Tensor:
        """float32 [size, K]: position of each key less that of each query."""
        rows = Tensor(np.arange(size, dtype=np.int32).reshape(size, 1)) + first
        columns = np.arange(keys, dtype=np.int32).reshape(1, keys)
        if not self.on_cpu:
            return (Tensor(columns) - rows).astype(ms.float32)
        # As a product: sums of a column and a row keep much memory. All are whole numbers that
        # float32 has.
        left = ops.concat((-rows.astype(ms.float32), ops.ones((size, 1), ms.float32)), 1)
        right = np.concatenate([np.ones_like(columns), columns]).astype(np.float32)
        return self.spread(left, Tensor(right))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: tuple[Tensor, ...]) -> Tensor:
        """Attends.

        Args:
            q: [B, S, N * D], already divided by sqrt(D).
            k: [B, S, G * D].
            v: the same.
            segments: one of int32 [B, S], the documents of records, or none.

        Returns:
            the mixed values [B, S, N * D].
        """
        batch, length, _ = q.shape
        q, k, v = (
            self.split(q, self.heads),
            self.split(k, self.kv_heads),
            self.split(v, self.kv_heads),
        )
        size = block_size(length, q.shape[0])
        segments, parts = _filled(segments, size), ()
        for start, end in bands(length, size):
            found = self.forward_band(
                self.blocks(q, start, end, size), k[:, :end], v[:, :end], start, size, segments
            )
            parts += (self.band(found, end - start),)
        return self.merge(ops.concat(parts, 1), batch)

    def forward_band(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        start: int,
        size: int,
        segments: tuple[Tensor, ...],
    ) -> Tensor:
        """q: [n, B * G, R * size, D]; k, v: [B * G, K, D]. Returns the shape of q."""
        count = q.shape[0]
        if count == 1:  # each loop keeps buffers of its own
            p = self.probabilities(q[0], k, Tensor(start, ms.int32), segments)
            return ops.expand_dims(self.product(p, v), 0)
        found = _zeros(q)
        number = Tensor(0, ms.int32)
        while number < count:
            p = self.probabilities(ops.gather(q, number, 0), k, start + number * size, segments)
            mixed = ops.expand_dims(self.product(p, v), 0)
            found = self.update(found, number.reshape((1, 1)), mixed)
            number = number + 1
        return found

    def backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        dout: Tensor,
        segments: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, from what `forward` took and returned."""
        batch, length, _ = dout.shape
        d_mixed, mixed = self.split(dout, self.heads), self.split(out, self.heads)
        # Tied to the gradient: else all this would be found equal to the forward pass and kept.
        q = self.split(ops.depend(q, dout), self.heads)
        k = self.split(ops.depend(k, dout), self.kv_heads)
        v = self.split(ops.depend(v, dout), self.kv_heads)
        size = block_size(length, q.shape[0])
        # One more column takes rowsum(dO * O) off the gradient of every probability of a row.
        less = -self.row_sum(d_mixed * mixed, -1)
        d_mixed = ops.concat((d_mixed, less), -1)
        v1 = ops.concat((v, ops.ones((v.shape[0], length, 1), v.dtype)), -1)
        segments = _filled(segments, size)
        d_k, d_v, parts = _zeros(k), _zeros(v), ()
        for start, end in bands(length, size):
            d_q, more_k, more_v = self.backward_band(
                self.blocks(q, start, end, size),
                self.blocks(d_mixed, start, end, size),
                k[:, :end],
                v1[:, :end],
                start,
                size,
                segments,
            )
            parts += (self.band(d_q, end - start),)
            d_k, d_v = _added(d_k, more_k), _added(d_v, more_v)
        return (
            self.merge(ops.concat(parts, 1), batch),
            self.merge(d_k, batch),
            self.merge(d_v, batch),
        )

    def backward_band(
        self,
        q: Tensor,
        d_mixed: Tensor,
        k: Tensor,
        v1: Tensor,
        start: int,
        size: int,
        segments: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """d_mixed: [n, B * G, R * size, D + 1]; v1: [B * G, K, D + 1]. Gradients of q, k and v."""
        count = q.shape[0]
        if count == 1:
            d_row, d_k, d_v = self.backward_block(
                q[0], d_mixed[0], k, v1, Tensor(start, ms.int32), segments
            )
            return ops.expand_dims(d_row, 0), d_k, d_v
        d_q, d_k, d_v = _zeros(q), _zeros(k), _zeros(k)
        number = Tensor(0, ms.int32)
        while number < count:
            d_row, more_k, more_v = self.backward_block(
                ops.gather(q, number, 0),
                ops.gather(d_mixed, number, 0),
                k,
                v1,
                start + number * size,
                segments,
            )
            d_q = self.update(d_q, number.reshape((1, 1)), ops.expand_dims(d_row, 0))
            d_k, d_v = d_k + more_k, d_v + more_v
            number = number + 1
        return d_q, d_k, d_v

    def backward_block(
        self,
        q: Tensor,
        d_mixed: Tensor,
        k: Tensor,
        v1: Tensor,
        first: Tensor,
        segments: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q: [B * G, R * size, D]; first: position of the first query. Gradients of q, k and v."""
        p = self.probabilities(q, k, first, segments)
        d_scores = p * self.product_bt(d_mixed, v1)
        return (
            self.product(d_scores, k),
            self.product_at(d_scores, q),
            self.product_at(p, d_mixed[:, :, :-1]),
        )


class BlockwiseAttention(_Blocks):
    """Attention within records, block by block."""

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `forward`."""
        return self.forward(q, k, v, ())

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""
        return self.backward(q, k, v, out, dout, ())


class DocumentBlocks(_Blocks):
    """Attention within each of the documents that a record holds, block by block."""

    def construct(self, q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
        """See `forward`; segments: int32 [B, S], the number of each token's document."""
        return self.forward(q, k, v, (segments,))

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, ...]:
        found = self.backward(q, k, v, out, dout, (segments,))
        return (*found, _zeros(segments))


def documents_apart(scores: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Hides from each query the keys of other documents.

    Args:
        scores: [B * N, Q * K].
        own: int32 [B, Q], the documents of the queries.
        others: int32 [B, K], those of the keys.
    """
    batch, queries = own.shape
    heads, parts = scores.shape[0] // batch, ()
    for record in range(batch):
        other = own[record].reshape((queries, 1)) != others[record].reshape((1, -1))
        mask = (other.astype(scores.dtype) * MASKED).reshape((-1,))
        parts += (ops.BiasAdd()(scores[record * heads : (record + 1) * heads], mask),)
    return ops.concat(parts, 0)


def swapped(batch: int, first: int, second: int) -> Tensor:
    """int32 row numbers that bring rows in the order (B, first, second) to (B, second, first)."""
    count = batch * first * second
    order = np.arange(count, dtype=np.int32).reshape(batch, first, second).transpose(0, 2, 1)
    return Tensor(order.reshape(-1))


def _filled(segments: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Filled up to whole blocks."""
    if len(segments) == 0:
        return ()
    batch, length = segments[0].shape
    missing = -length % size
    if missing == 0:
        return segments
    return (ops.concat((segments[0], ops.zeros((batch, missing), segments[0].dtype)), 1),)


def _zeros(x: Tensor) -> Tensor:
    # In a Cell with loops, the graph of `ops.zeros_like` is found empty (MindSpore 2.10).
    return ops.zeros(x.shape, x.dtype)


def _added(whole: Tensor, part: Tensor) -> Tensor:
    """[n, S, D] + [n, K, D] at the first K of S positions."""
    rows, length, width = whole.shape
    missing = length - part.shape[1]
    if missing:
        part = ops.concat((part, ops.zeros((rows, missing, width), part.dtype)), 1)
    return whole + part
