"""Causal attention over whole records at once; `attention.py` has the letters of shapes."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from lm_core.nn.alibi import LinearBias
from lm_core.nn.blockwise import MASKED, documents_apart, swapped
from lm_core.nn.dropout import Dropout
from lm_core.parallel import backend


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
        slopes: of the linear biases of these heads (`lm_core.nn.alibi`); None: there are none.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        dropout: Dropout,
        softmax_type: str = "float32",
        slopes: np.ndarray | None = None,
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
        self.linear_bias = None if slopes is None else LinearBias(slopes, self.softmax_type)
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
        scores = scores.reshape((groups * queries // length, length * length))
        if self.linear_bias is None:
            scores = self.add_mask(scores, causal_mask(length, self.softmax_type))
        else:
            scores = self.linear_bias(scores, causal_distances(length))
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


def causal_mask(length: int, dtype: ms.Type = ms.float32) -> Tensor:
    """[S * S], row by row: 0 on and below the diagonal, MASKED above."""
    return Tensor(np.triu(np.full((length, length), MASKED, np.float32), 1).reshape(-1), dtype)


def causal_distances(length: int) -> Tensor:
    """float32 [S * S], row by row: j - i on and below the diagonal, MASKED above."""
    at = np.arange(length, dtype=np.float32)
    found = at - at.reshape(-1, 1)
    hidden = np.triu(np.full((length, length), MASKED, np.float32), 1)
    return Tensor((np.tril(found) + hidden).reshape(-1), ms.float32)
