"""Attention against NumPy in float64: result and gradients, with dropout as well."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from lm_core.errors import ConfigError
from lm_core.nn.attention import CausalAttention, CausalSelfAttention
from lm_core.nn.dropout import Dropout
from lm_core.parallel.context import ParallelContext

KEY = np.array([11, 0], np.int32)


class _AllGradients(nn.Cell):
    """Gradients of sum(d_out * attention(q, k, v)) by q, k and v."""

    def __init__(self, attention: CausalAttention) -> None:
        super().__init__()
        self.attention = attention
        self.grad = ms.grad(self.score, (1, 2, 3))

    def score(self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, key: Tensor) -> Tensor:
        return (self.attention(q, k, v, key)[0] * d_out).sum()

    def construct(self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, key: Tensor) -> Tensor:
        return self.grad(d_out, q, k, v, key)


def _heads(x, n):
    batch, length, width = x.shape
    return x.reshape(batch, length, n, width // n).transpose(0, 2, 1, 3)


def _attend(q, k, v, n, mask=1.0):
    """q, k, v: float64 [B, S, N * D]; mask: [B, N, S, S], multiplied into the probabilities."""
    q, k, v = (_heads(x, n) for x in (q, k, v))
    scores = np.where(np.tri(q.shape[2]), q @ k.transpose(0, 1, 3, 2), -np.inf)
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


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize(("batch", "length", "n"), [(2, 5, 3), (3, 1, 2), (1, 8, 1)])
def test_result_and_gradients(batch, length, n, rate, rng):
    attention = CausalAttention(n, Dropout(rate, 3))
    attention.set_train(True)
    shape = (batch, length, n * 2)
    q, k, v, d_out = (rng.normal(size=shape) for _ in range(4))
    mask = np.ones((batch, n, length, length))
    if rate:
        mask = attention.dropout.mask(batch * n * length, length, Tensor(KEY)).asnumpy()
        mask = mask.reshape(batch, n, length, length).astype(np.float64)
    inputs = [Tensor(x.astype(np.float32)) for x in (q, k, v)]
    found = attention(*inputs, Tensor(KEY))[0].asnumpy()
    np.testing.assert_allclose(found, _attend(q, k, v, n, mask), atol=1e-5)
    gradients = _AllGradients(attention)(Tensor(d_out.astype(np.float32)), *inputs, Tensor(KEY))
    for place, gradient in enumerate(gradients):

        def moved(x, place=place):
            changed = [q, k, v]
            changed[place] = x
            return _attend(*changed, n, mask)

        expected = _numeric(moved, (q, k, v)[place], d_out)
        np.testing.assert_allclose(gradient.asnumpy(), expected, atol=2e-5)


def test_large_scores_do_not_overflow(rng):
    attention = CausalAttention(1, Dropout(0.0, 0))
    q, v = 1e3 * rng.normal(size=(1, 6, 4)), rng.normal(size=(1, 6, 4))
    inputs = [Tensor(x.astype(np.float32)) for x in (q, q, v)]
    found = attention(*inputs, Tensor(KEY))[0].asnumpy()
    np.testing.assert_allclose(found, _attend(q, q, v, 1), atol=1e-5)


def test_heads_that_do_not_divide():
    context = ParallelContext(model_parallel=4)
    with pytest.raises(ConfigError, match="model_parallel: 4 does not divide 6 heads; use one of"):
        CausalSelfAttention(12, 6, context, std=0.1, out_std=0.1, dropout=0.0, site=1, bias=True)
