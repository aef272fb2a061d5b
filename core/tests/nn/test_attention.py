"""Attention against NumPy in float64: result and gradients, with dropout as well."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from lm_core.errors import ConfigError
from lm_core.nn import block_sizes, blockwise
from lm_core.nn.alibi import slopes
from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.blockwise import BlockwiseAttention
from lm_core.nn.causal import CausalAttention
from lm_core.nn.dropout import Dropout
from lm_core.parallel.context import ParallelContext

KEY = np.array([11, 0], np.int32)


class _AllGradients(nn.Cell):
    """Gradients of sum(d_out * attention(q, k, v)) by q, k and v."""

    def __init__(self, attention: nn.Cell) -> None:
        super().__init__()
        self.attention = attention
        self.grad = ms.grad(self.score, (1, 2, 3))

    def score(self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *key: Tensor) -> Tensor:
        found = self.attention(q, k, v, *key)
        mixed = found[0] if isinstance(found, tuple) else found
        return (mixed * d_out).sum()

    def construct(self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *key: Tensor) -> Tensor:
        return self.grad(d_out, q, k, v, *key)


def _heads(x, n):
    batch, length, width = x.shape
    return x.reshape(batch, length, n, width // n).transpose(0, 2, 1, 3)


def _attend(q, k, v, n, mask=1.0, groups=None, linear=None):
    """q: float64 [B, S, N * D]; k, v: [B, S, G * D].

    mask: [B, N, S, S], multiplied into the probabilities; linear: slopes [N] of biases.
    """
    groups = groups or n
    q, k, v = _heads(q, n), _heads(k, groups), _heads(v, groups)
    k, v = (np.repeat(x, n // groups, 1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2)
    if linear is not None:
        at = np.arange(q.shape[2])
        scores = scores + linear[:, None, None] * (at[None, :] - at[:, None])
    scores = np.where(np.tri(q.shape[2]), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (p / p.sum(-1, keepdims=True) * mask) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)


def _numeric(function, x, d_out):
    """Gradient of sum(d_out * function(x)) by central differences."""
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-5
        found[place] = ((function(x + step) - function(x - step)) * d_out).sum() / 2e-5
    return found


def _check_gradients(attention, rng, batch, length, n, groups, mask, *key, linear=None):
    q, d_out = (rng.normal(size=(batch, length, n * 2)) for _ in range(2))
    k, v = (rng.normal(size=(batch, length, groups * 2)) for _ in range(2))
    inputs = [Tensor(x.astype(np.float32)) for x in (q, k, v)]
    found = attention(*inputs, *key)
    found = found[0] if isinstance(found, tuple) else found
    expected = _attend(q, k, v, n, mask, groups, linear)
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5)
    gradients = _AllGradients(attention)(Tensor(d_out.astype(np.float32)), *inputs, *key)
    for place, gradient in enumerate(gradients):

        def moved(x, place=place):
            changed = [q, k, v]
            changed[place] = x
            return _attend(*changed, n, mask, groups, linear)

        expected = _numeric(moved, (q, k, v)[place], d_out)
        np.testing.assert_allclose(gradient.asnumpy(), expected, atol=2e-5)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize(
    ("batch", "length", "n", "groups"), [(2, 5, 3, 3), (3, 1, 2, 1), (1, 8, 1, 1), (2, 4, 6, 2)]
)
def test_result_and_gradients(batch, length, n, groups, rate, rng):
    attention = CausalAttention(n, groups, Dropout(rate, 3))
    attention.set_train(True)
    mask = np.ones((batch, n, length, length))
    if rate:
        mask = attention.dropout.mask(batch * n * length, length, Tensor(KEY)).asnumpy()
        mask = mask.reshape(batch, n, length, length).astype(np.float64)
    _check_gradients(attention, rng, batch, length, n, groups, mask, Tensor(KEY))


@pytest.mark.parametrize(
    ("batch", "length", "n", "groups", "size"),
    [(1, 8, 1, 1, 2), (2, 7, 4, 2, 2), (1, 11, 2, 1, 3), (2, 1, 2, 2, 4), (1, 5, 3, 3, 256)],
)
def test_blocks(batch, length, n, groups, size, rng, monkeypatch):
    """Bands of several blocks, of one, and a last block that is not full."""
    monkeypatch.setattr(block_sizes, "_MOST", size)
    _check_gradients(BlockwiseAttention(n, groups), rng, batch, length, n, groups, 1.0)


@pytest.mark.parametrize(("batch", "length", "n", "groups"), [(2, 5, 3, 3), (1, 9, 6, 2)])
def test_linear_biases(batch, length, n, groups, rng, monkeypatch):
    """In one piece and in blocks, also where heads share keys."""
    monkeypatch.setattr(block_sizes, "_MOST", 2)
    linear = slopes(n)
    whole = CausalAttention(n, groups, Dropout(0.0, 3), slopes=linear)
    _check_gradients(whole, rng, batch, length, n, groups, 1.0, Tensor(KEY), linear=linear)
    blocks = BlockwiseAttention(n, groups, slopes=linear)
    _check_gradients(blocks, rng, batch, length, n, groups, 1.0, linear=linear)


def test_the_slopes_of_the_paper():
    """Powers of two are a geometric series; others take every second one of the next series."""
    np.testing.assert_allclose(slopes(8), [2.0**-k for k in range(1, 9)], rtol=1e-15)
    np.testing.assert_allclose(slopes(4), [1 / 4, 1 / 16, 1 / 64, 1 / 256], rtol=1e-15)
    np.testing.assert_allclose(slopes(6), [*slopes(4), 1 / 2, 1 / 8], rtol=1e-15)
    assert slopes(1).tolist() == [2.0**-8]
    # Of 13B: those of 32 heads, then eight of 64.
    np.testing.assert_allclose(slopes(40)[:32], slopes(32), rtol=1e-15)
    np.testing.assert_allclose(slopes(40)[32:], slopes(64)[:16:2], rtol=1e-15)


def test_distances_are_exact_in_long_sequences(rng):
    """At 3,000 positions: with the two positions added one by one, 3e-4 would be lost."""
    length, size = 3000, 4
    q, k, v = (rng.normal(size=(1, length, size)) for _ in range(3))
    inputs = [Tensor(x.astype(np.float32)) for x in (q, k, v)]
    linear = np.array([0.84])
    expected = _attend(q, k, v, 1, linear=linear)[0, -1]
    for attention, key in (
        (CausalAttention(1, 1, Dropout(0.0, 3), slopes=linear), (Tensor(KEY),)),
        (BlockwiseAttention(1, 1, slopes=linear), ()),
    ):
        found = attention(*inputs, *key)
        found = (found[0] if isinstance(found, tuple) else found).asnumpy()[0, -1]
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_blocks_shrink_as_sequences_grow():
    """So that what there is at a time stays about the same."""
    for length in (100, 2_000, 8_000, 16_000, 100_000):
        size = blockwise.block_size(length, 8)
        assert 16 <= size <= 256
        assert size == 256 or 2 * size * length * 8 > 8 * 1024 * 1024
        found = blockwise.bands(length, size)
        assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
        assert found[-1][1] == length
        assert all(start % size == 0 for start, _ in found)


def test_large_scores_do_not_overflow(rng):
    attention = CausalAttention(1, 1, Dropout(0.0, 0))
    q, v = 1e3 * rng.normal(size=(1, 6, 4)), rng.normal(size=(1, 6, 4))
    inputs = [Tensor(x.astype(np.float32)) for x in (q, q, v)]
    found = attention(*inputs, Tensor(KEY))[0].asnumpy()
    np.testing.assert_allclose(found, _attend(q, q, v, 1), atol=1e-5)


def test_heads_that_do_not_divide():
    context = ParallelContext(model_parallel=4)
    with pytest.raises(ConfigError, match="model_parallel: 4 does not divide 6 heads; use one of"):
        CausalSelfAttention(12, 6, context, std=0.1, out_std=0.1, dropout=0.0, site=1, bias=True)


def test_more_ranks_than_heads_of_keys():
    """Neighbours hold the same head; each of them has the queries that read it."""
    for rank in range(4):
        context = ParallelContext(model_parallel=4, rank=rank)
        attention = CausalSelfAttention(
            16, 8, context, std=0.1, out_std=0.1, dropout=0.0, site=1, kv_heads=2, bias=False
        )
        assert (attention.heads, attention.kv_heads) == (2, 1)
        assert attention.k.weight.shape == (16, 2)
        assert (attention.k.cut.parts, attention.k.tp_rank) == (2, rank // 2)
        assert attention.q.weight.shape == (16, 4)
