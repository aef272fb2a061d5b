"""Activation functions by the names of the configuration."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from lm_core.errors import ConfigError
from lm_core.nn import cpu
from lm_core.parallel import backend

_FEW = 30_000


class GeluTanh(nn.Cell):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016).

    "gelu_new" of the published GPT-2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gelu = ops.GeLU()
        self.on_cpu = backend.on_cpu()
        self.cpu_gelu = cpu.GeluTanh()

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        # Eight quick kernels against a slow one: for a few rows, starting them takes longer.
        if self.on_cpu and cpu.more_than(x.size, _FEW):
            return self.cpu_gelu(x)
        return self.gelu(x)


class GeluExact(nn.Cell):
    """x * Phi(x) with the error function."""

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return x * 0.5 * (1.0 + ops.erf(x * 0.7071067811865476))


class FastGelu(nn.Cell):
    """x * sigmoid(1.702 x), MindSpore's FastGeLU and Hugging Face's quick_gelu."""

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return x * ops.sigmoid(x * 1.702)


class Relu(nn.Cell):
    """max(x, 0)."""

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return ops.relu(x)


class Silu(nn.Cell):
    """x * sigmoid(x)."""

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return ops.silu(x)


ACTIVATIONS = {
    "gelu_tanh": GeluTanh,
    "gelu_exact": GeluExact,
    "fast_gelu": FastGelu,
    "relu": Relu,
    "silu": Silu,
}


def activation(name: str) -> nn.Cell:
    """The Cell called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act: {name!r} is not an activation; use one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]()
