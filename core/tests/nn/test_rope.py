"""Rotary positions against complex numbers, and stretched ones against their definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from lm_core.config.rope import RopeScaling
from lm_core.errors import ConfigError
from lm_core.nn.rope import Rotary, Rotate, inverse_frequencies

PLAIN = RopeScaling()


def _turned(x, positions, theta, rotary):
    """x: [T, N, D]: pairs (i, i + rotary / 2) as complex numbers, times exp(i p theta^(-2i/d))."""
    half = rotary // 2
    angles = positions[:, None] * theta ** (-2.0 * np.arange(half) / rotary)
    pairs = (x[..., :half] + 1j * x[..., half:rotary]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag, x[..., rotary:]], -1)


@pytest.mark.parametrize(("dim", "rotary"), [(8, 8), (8, 4), (2, 2)])
def test_rotation_and_its_gradient(dim, rotary, rng, gradients):
    heads, positions = 3, np.array([0, 1, 5, 1000], np.int32)
    x, d_out = (rng.normal(size=(4, heads, dim)) for _ in range(2))
    cos, sin = Rotary(dim, 10000.0, PLAIN, 2048, rotary)(Tensor(positions), heads, 0.5)
    flat = x.reshape(-1, dim).astype(np.float32)
    found = Rotate(dim, rotary)(Tensor(flat), cos, sin).asnumpy()
    expected = 0.5 * _turned(x, positions, 10000.0, rotary)
    np.testing.assert_allclose(found.reshape(x.shape), expected, atol=1e-4)
    d_x, _ = gradients(
        Rotate(dim, rotary), d_out.reshape(flat.shape), flat, cos.asnumpy(), sin.asnumpy()
    )
    # A rotation is undone by the negative angle, and its gradient is its inverse.
    back = 0.5 * _turned(d_out, -positions, 10000.0, rotary)
    np.testing.assert_allclose(d_x.reshape(x.shape), back, atol=1e-4)


def test_scores_depend_on_the_distance_alone(rng):
    q, k = rng.normal(size=(2, 1, 16)).astype(np.float32)
    rotary, rotate = Rotary(16, 10000.0, PLAIN, 2048), Rotate(16)

    def score(at_q, at_k):
        rows = [
            rotate(Tensor(x), *rotary(Tensor(np.array([at], np.int32)), 1, 1.0)).asnumpy()
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((rows[0] * rows[1]).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def _scaled(theta=10000.0, trained=2048, size=8, **values):
    return inverse_frequencies(size, theta, RopeScaling.parse(values), trained)


def test_position_interpolation_divides_positions():
    plain, _ = _scaled()
    found, factor = _scaled(type="linear", factor=4.0)
    np.testing.assert_allclose(found, plain / 4)
    assert factor == 1.0


def test_ntk_slows_the_slowest_by_the_factor_and_keeps_the_fastest():
    """Multiplying theta by the factor itself would slow it by factor^((d - 2) / d) only."""
    plain, _ = _scaled()
    found, _ = _scaled(type="ntk", factor=4.0)
    assert found[0] == plain[0] == 1.0
    assert found[-1] == pytest.approx(plain[-1] / 4)
    assert (np.diff(found / plain) < 0).all()


def test_yarn_and_llama3_keep_fast_turns_and_slow_down_slow_ones():
    for kind in ("yarn", "llama3"):
        plain, _ = _scaled(size=64)
        found, factor = _scaled(
            size=64, type=kind, factor=8.0, original_max_position_embeddings=2048
        )
        assert found[0] == plain[0] and found[-1] == pytest.approx(plain[-1] / 8)
        assert (np.diff(found / plain) <= 1e-12).all()
        expected = 0.1 * math.log(8.0) + 1.0 if kind == "yarn" else 1.0
        assert factor == pytest.approx(expected)


def test_hugging_face_spellings():
    assert RopeScaling.from_hf(None) is None
    assert RopeScaling.from_hf({"rope_type": "default", "rope_theta": 10000.0}) is None
    old = RopeScaling.from_hf({"type": "linear", "factor": 2})
    new = RopeScaling.from_hf({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    assert old == new == RopeScaling(type="linear", factor=2.0)
    assert new.to_hf() == {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ConfigError, match="rope_scaling.type: is 'longrope'; must be one of"):
        RopeScaling.from_hf({"type": "longrope"})
    with pytest.raises(ConfigError, match="rope_scaling.factor"):
        RopeScaling.from_hf({"type": "linear", "factor": 0.5})


VECTORS = json.loads((Path(__file__).parent / "rope_vectors.json").read_text())["cases"]


@pytest.mark.parity
@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"{c['scaling']['type']}-{c['theta']:g}")
def test_frequencies_are_those_of_transformers(case):
    found, factor = _scaled(size=64, theta=case["theta"], trained=16384, **case["scaling"])
    np.testing.assert_allclose(found, case["inverse"], rtol=2e-6)
    assert factor == pytest.approx(case["factor"])


@pytest.mark.parametrize(("dim", "rotary"), [(8, 8), (8, 4)])
def test_one_product_turns_as_the_tables_do(dim, rotary, rng):
    turn, positions = Rotary(dim, 10000.0, PLAIN, 2048, rotary), np.array([3, 70], np.int32)
    x = rng.normal(size=(2, 5, dim)).astype(np.float32)
    expected = 0.5 * _turned(x, positions, 10000.0, rotary)
    matrices = turn.matrices(Tensor(positions), 0.5).asnumpy()
    np.testing.assert_allclose(x @ matrices, expected, atol=1e-5)
