"""Update rules against NumPy in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from lm_core.config.training import OptimizerConfig
from lm_core.errors import ConfigError
from lm_core.parallel import backend
from lm_core.train.optimizer import AdamW, Optimizer, Sgd, decays, from_config

SHAPES = {"matrix": (33, 17), "bias": (17,), "scalar": (1,), "cube": (3, 4, 5)}
STEPS = 20


class Apply(nn.Cell):
    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, gradients, factor, scalars):
        return self.optimizer(gradients, factor, *scalars)


def parameters(kind=ms.float32) -> list[Parameter]:
    backend.setup()
    generator = np.random.default_rng(0)
    return [
        Parameter(Tensor(generator.standard_normal(shape).astype(np.float32), kind), name=name)
        for name, shape in SHAPES.items()
    ]


def gradients(step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(100 + step)
    # From 1e-6 to 1, and exact zeros: small second moments are where implementations differ.
    sizes = 10.0 ** generator.integers(-6, 1, len(SHAPES))
    found = [
        (generator.standard_normal(shape) * size).astype(np.float32)
        for shape, size in zip(SHAPES.values(), sizes, strict=True)
    ]
    found[0][:, 0] = 0.0
    return found


def run(optimizer: Optimizer, factor: float = 1.0, steps: int = STEPS) -> list[np.ndarray]:
    apply = Apply(optimizer)
    for step in range(1, steps + 1):
        pairs = zip(gradients(step), optimizer.parameters, strict=True)
        found = tuple(Tensor(gradient, p.dtype) for gradient, p in pairs)
        apply(found, Tensor(np.float32(factor)), optimizer.scalars(rate(step), step))
    return [p.asnumpy().astype(np.float64) for p in optimizer.parameters]


def rate(step: int) -> float:
    return 1e-2 * step / STEPS


def adamw(factor: float, correct: bool, b1=0.9, b2=0.95, eps=1e-8, decay=0.1) -> list[np.ndarray]:
    found = []
    for i, start in enumerate(p.asnumpy().astype(np.float64) for p in parameters()):
        p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for t in range(1, STEPS + 1):
            g = gradients(t)[i].astype(np.float64) * factor
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            mh, vh = (m / (1 - b1**t), v / (1 - b2**t)) if correct else (m, v)
            wd = decay if p.ndim > 1 else 0.0
            p = p - rate(t) * (mh / (np.sqrt(vh) + eps) + wd * p)
        found.append(p)
    return found


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.125])
def test_adamw(correct: bool, factor: float):
    optimizer = AdamW(parameters(), beta2=0.95, weight_decay=0.1, bias_correction=correct)
    for ours, right in zip(run(optimizer, factor), adamw(factor, correct), strict=True):
        assert np.abs(ours - right).max() / np.abs(right).max() < 1e-6


def test_the_composed_rule_is_the_fused_rule():
    """Weights that are not float32 take another path; in float32 both must agree."""
    fused = AdamW(parameters(), beta2=0.95, weight_decay=0.1)
    composed = AdamW(parameters(), beta2=0.95, weight_decay=0.1)
    composed.fused = (False,) * len(SHAPES)
    for a, b in zip(run(fused), run(composed), strict=True):
        assert np.abs(a - b).max() / np.abs(b).max() < 1e-6


def test_half_precision_weights_have_float32_state():
    optimizer = AdamW(parameters(ms.float16), beta2=0.95, weight_decay=0.1)
    assert {p.dtype for p in optimizer.state().values()} == {ms.float32}
    for ours, right in zip(run(optimizer), adamw(1.0, True), strict=True):
        # 20 roundings to 11 bits.
        assert np.abs(ours - right).max() / np.abs(right).max() < 20 * 2.0**-11


def test_the_first_update_is_the_learning_rate():
    """With bias correction and no decay, the first step is lr * sign(g) whatever the size of g."""
    optimizer = AdamW(parameters(), weight_decay=0.0)
    before = [p.asnumpy().astype(np.float64) for p in optimizer.parameters]
    after = run(optimizer, steps=1)
    for old, new, gradient in zip(before, after, gradients(1), strict=True):
        seen = np.abs(gradient) > 1e-6
        moved = (old - new)[seen] / rate(1)
        np.testing.assert_allclose(moved, np.sign(gradient[seen]), rtol=0.02)
        assert np.array_equal(old[gradient == 0], new[gradient == 0])


def test_only_matrices_decay():
    assert [decays(p) for p in parameters()] == [True, False, False, True]
    optimizer = AdamW(parameters(), weight_decay=0.5)
    still = Apply(optimizer)
    before = [p.asnumpy().copy() for p in optimizer.parameters]
    zeros = tuple(Tensor(np.zeros(p.shape, np.float32)) for p in optimizer.parameters)
    still(zeros, Tensor(np.float32(1)), optimizer.scalars(0.1, 1))
    for old, p in zip(before, optimizer.parameters, strict=True):
        shrunk = 0.95 if p.ndim > 1 else 1.0
        np.testing.assert_allclose(p.asnumpy(), old * shrunk, rtol=1e-6)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"), [(0, False, 0), (0.9, False, 0.1), (0.9, True, 0.0)]
)
def test_sgd(momentum: float, nesterov: bool, decay: float):
    optimizer = Sgd(parameters(), momentum=momentum, nesterov=nesterov, weight_decay=decay)
    ours = run(optimizer)
    for i, start in enumerate(p.asnumpy().astype(np.float64) for p in parameters()):
        p, buffer = start.copy(), np.zeros_like(start)
        for t in range(1, STEPS + 1):
            g = gradients(t)[i] + (decay * p if p.ndim > 1 else 0.0)
            buffer = momentum * buffer + g
            p = p - rate(t) * (g + momentum * buffer if nesterov else buffer)
        assert np.abs(ours[i] - p).max() / np.abs(p).max() < 1e-6
    assert len(optimizer.state()) == (len(SHAPES) if momentum else 0)


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match="nesterov: needs momentum"):
        Sgd(parameters(), nesterov=True)


def test_names_of_the_cards():
    for name in ("FP32StateAdamWeightDecay", "FusedAdamWeightDecay", "AdamW", "fp32_adamw"):
        built = from_config(OptimizerConfig(type=name, beta2=0.95, weight_decay=0.1), parameters())
        assert isinstance(built, AdamW)
        assert (built.beta1, built.beta2, built.weight_decay) == (0.9, 0.95, 0.1)
    assert isinstance(from_config(OptimizerConfig(type="SGD"), parameters()), Sgd)


def test_state_has_the_names_of_the_weights():
    assert list(AdamW(parameters()).state()) == [
        f"adam.{moment}.{name}" for moment in "mv" for name in SHAPES
    ]
