"""Each layer against NumPy in float64, written from its definition; gradients likewise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from lm_core.errors import ConfigError
from lm_core.nn.activation import ACTIVATIONS, activation
from lm_core.nn.embedding import Embedding, NormHead, TiedEmbedding, VocabParallelEmbedding
from lm_core.nn.linear import ColumnParallelLinear, Linear, RowParallelLinear
from lm_core.nn.loss import IGNORED, CrossEntropy
from lm_core.nn.mlp import GatedMlp
from lm_core.nn.norm import LayerNorm, RmsNorm
from lm_core.parallel.context import ParallelContext

LOCAL = ParallelContext.local()
SIZE = 33_000  # above it, the activation is composed of several operators


def _set(parameter: Parameter, values: np.ndarray) -> np.ndarray:
    parameter.set_data(Tensor(values.astype(np.float32)))
    return values.astype(np.float64)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


FORMULAS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("size", [7, SIZE])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, size, gradients):
    x = np.linspace(-9, 9, size).astype(np.float32).reshape(-1, 1)
    exact = x.astype(np.float64)
    cell = activation(name)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), FORMULAS[name](exact), atol=2e-6)
    slope = (FORMULAS[name](exact + 1e-6) - FORMULAS[name](exact - 1e-6)) / 2e-6
    found, _ = gradients(cell, np.ones_like(x), x)
    inside = np.abs(x) > 1e-3  # relu has no slope at 0
    np.testing.assert_allclose(found[inside], slope[inside], atol=5e-6)


@pytest.mark.parametrize("size", [3, SIZE])
def test_gelu_far_from_zero(size):
    x = np.tile(np.array([1e4, -1e4, 40.0], np.float32), size // 3)
    np.testing.assert_array_equal(activation("gelu_tanh")(Tensor(x)).asnumpy(), np.maximum(x, 0))


def test_unknown_activation():
    with pytest.raises(ConfigError, match="hidden_act: 'swich' is not an activation; use one of "):
        activation("swich")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [Linear, ColumnParallelLinear, RowParallelLinear])
def test_linear(kind, bias, training, gradients, rng):
    place = () if kind is Linear else (LOCAL, "columns")
    cell = kind(5, 3, *place, bias=bias, std=0.1)
    cell.set_train(training)
    weight = _set(cell.weight, rng.normal(size=(5, 3)))
    offset = _set(cell.bias, rng.normal(size=3)) if bias else 0.0
    x, d_out = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(4, 3))
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), x @ weight + offset, atol=1e-5)
    d_x, d_parameters = gradients(cell, d_out, x)
    np.testing.assert_allclose(d_x, d_out @ weight.T, atol=1e-5)
    expected = [x.T @ d_out, d_out.sum(0)][: 1 + bias]
    for found, value in zip(d_parameters, expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)


def _layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("training", [False, True])
def test_layer_norm(training, gradients, rng):
    cell = LayerNorm(6, 1e-3)
    cell.set_train(training)
    weight = _set(cell.weight, rng.normal(size=6))
    bias = _set(cell.bias, rng.normal(size=6))
    x = (3 + 2 * rng.normal(size=(5, 6))).astype(np.float32)
    x[2] = 7.0  # no variance at all
    exact, d_out = x.astype(np.float64), rng.normal(size=(5, 6))
    normed = _layer_norm(exact, weight, bias, 1e-3)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), normed, atol=1e-5)
    d_x, (d_weight, d_bias) = gradients(cell, d_out, x)
    numeric = np.zeros_like(exact)
    for place in np.ndindex(exact.shape):
        step = np.zeros_like(exact)
        step[place] = 1e-6
        up, low = (_layer_norm(exact + s, weight, bias, 1e-3) for s in (step, -step))
        numeric[place] = ((up - low) * d_out).sum() / 2e-6
    np.testing.assert_allclose(d_x, numeric, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(d_weight, ((normed - bias) / weight * d_out).sum(0), atol=1e-5)
    np.testing.assert_allclose(d_bias, d_out.sum(0), atol=1e-5)


def _gradient_of_rows(ids, d_out, count):
    expected = np.zeros((count, d_out.shape[1]))
    np.add.at(expected, ids, d_out)
    return expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_embeddings(count, training, gradients, rng):
    """Also with every id many times, whose gradients add up."""
    ids = rng.integers(0, 7, count).astype(np.int32)
    d_out = rng.normal(size=(count, 4))
    for cell in (
        Embedding(7, 4, std=0.1),
        VocabParallelEmbedding(7, 4, LOCAL, std=0.1),
        TiedEmbedding(7, 4, LOCAL, std=0.1),
    ):
        cell.set_train(training)
        table = _set(cell.weight, rng.normal(size=cell.weight.shape))
        tied = isinstance(cell, TiedEmbedding)
        rows = table.T if tied else table
        np.testing.assert_allclose(cell(Tensor(ids)).asnumpy(), rows[ids], atol=1e-6)
        if training:
            _, (d_table,) = gradients(cell, d_out, ids)
            expected = _gradient_of_rows(ids, d_out, 7)
            np.testing.assert_allclose(d_table.T if tied else d_table, expected, atol=1e-5)


def test_tied_head(rng):
    cell = TiedEmbedding(7, 4, LOCAL, std=0.1)
    table = _set(cell.weight, rng.normal(size=(4, 7)))
    x = rng.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(cell.logits(Tensor(x)).asnumpy(), x @ table, atol=1e-5)


def test_cross_entropy_leaves_out_what_is_ignored(rng):
    logits = (20 * rng.normal(size=(6, 9))).astype(np.float32)
    labels = np.array([3, IGNORED, 0, 8, IGNORED, 1], np.int32)
    total, count = CrossEntropy()(Tensor(logits), Tensor(labels))
    exact = logits.astype(np.float64)
    losses = np.log(np.exp(exact).sum(-1)) - exact[np.arange(6), np.maximum(labels, 0)]
    assert float(total.asnumpy()) == pytest.approx(losses[labels != IGNORED].sum(), rel=1e-6)
    assert float(count.asnumpy()) == 4


def test_columns_add_up_in_a_fixed_order(rng, gradients):
    """The same bytes each time, though many rows fall on one column."""
    cell = TiedEmbedding(50, 16, LOCAL, std=0.1)
    cell.set_train(True)
    ids, d_out = rng.integers(0, 3, 4000).astype(np.int32), rng.normal(size=(4000, 16))
    first, again = (gradients(cell, d_out, ids)[1][0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_rms_norm_of_many_rows(rng):
    """Outside of training they take another way than the few of a decoding step."""
    norm = RmsNorm(6, 1e-3)
    norm.set_train(False)
    weight = _set(norm.weight, rng.normal(1.0, 0.3, 6))
    for rows in (64, 65):
        x = rng.normal(size=(rows, 6))
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * weight
        found = norm(Tensor(x.astype(np.float32))).asnumpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_rms_norm(training, rng, gradients):
    norm = RmsNorm(6, 1e-3)
    norm.set_train(training)
    weight = _set(norm.weight, rng.normal(1.0, 0.3, 6))
    x, d_out = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(4, 6))
    exact = x.astype(np.float64)

    def formula(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * weight

    np.testing.assert_allclose(norm(Tensor(x)).asnumpy(), formula(exact, weight), atol=1e-6)
    d_x, (d_weight,) = gradients(norm, d_out, x)
    np.testing.assert_allclose(d_x, _slopes(lambda x: formula(x, weight), exact, d_out), atol=5e-6)
    slopes = _slopes(lambda weight: formula(exact, weight), weight, d_out)
    np.testing.assert_allclose(d_weight, slopes, atol=5e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gated_mlp(training, rng, gradients):
    mlp = GatedMlp(4, 6, LOCAL, std=0.1, bias=False)
    mlp.set_train(training)
    gate, up, down = (
        _set(cell.weight, rng.normal(size=cell.weight.shape))
        for cell in (mlp.gate, mlp.up, mlp.down)
    )
    x, d_out = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(5, 4))
    exact = x.astype(np.float64)

    def formula(x, gate=gate, up=up):
        return (FORMULAS["silu"](x @ gate) * (x @ up)) @ down

    np.testing.assert_allclose(mlp(Tensor(x)).asnumpy(), formula(exact), atol=1e-5)
    d_x, (d_gate, d_up, _) = gradients(mlp, d_out, x)
    np.testing.assert_allclose(d_x, _slopes(formula, exact, d_out), atol=5e-5)
    slopes = _slopes(lambda gate: formula(exact, gate=gate), gate, d_out)
    np.testing.assert_allclose(d_gate, slopes, atol=5e-5)
    slopes = _slopes(lambda up: formula(exact, up=up), up, d_out)
    np.testing.assert_allclose(d_up, slopes, atol=5e-5)


def _slopes(function, x, d_out):
    """Gradient of sum(d_out * function(x)) by central differences."""
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        found[place] = ((function(x + step) - function(x - step)) * d_out).sum() / 2e-6
    return found


@pytest.mark.parametrize("training", [False, True])
def test_a_normalised_head(training, gradients, rng):
    """Directions of columns; the gradient of each column stands at right angles to it."""
    head = NormHead(5, 7, LOCAL, std=0.1)
    head.set_train(training)
    weight = _set(head.weight, rng.normal(size=(5, 7)) * np.linspace(0.01, 30, 7))
    x, d_out = rng.normal(size=(4, 5)), rng.normal(size=(4, 7))
    lengths = np.sqrt((weight**2).sum(0))
    given = x.astype(np.float32)
    np.testing.assert_allclose(head(Tensor(given)).asnumpy(), x @ weight / lengths, atol=2e-6)
    dx, (d_weight,) = gradients(head, d_out, given)
    directions = weight / lengths
    expected = x.T @ d_out
    expected = (expected - directions * (directions * expected).sum(0)) / lengths
    np.testing.assert_allclose(dx, d_out @ directions.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_weight, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_a_normalised_head_prepares_steps(rng):
    """Lengths are those of the last `prepare`, the weight is not touched, and 0 stays 0."""
    head = NormHead(5, 3, LOCAL, std=0.1)
    weight = rng.normal(size=(5, 3))
    weight[:, 1] = 0.0
    _set(head.weight, weight)
    x = Tensor(rng.normal(size=(2, 5)).astype(np.float32))
    head.prepare()
    np.testing.assert_allclose(head.step(x).asnumpy(), head(x).asnumpy(), atol=1e-6)
    assert (head(x).asnumpy()[:, 1] == 0).all()
    _set(head.weight, 2 * weight)
    np.testing.assert_allclose(head.step(x).asnumpy(), 2 * head(x).asnumpy(), atol=1e-6)
    head.prepare()
    np.testing.assert_allclose(head.step(x).asnumpy(), head(x).asnumpy(), atol=1e-6)
    np.testing.assert_array_equal(head.weight.asnumpy(), (2 * weight).astype(np.float32))
