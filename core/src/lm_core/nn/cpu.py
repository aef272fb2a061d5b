"""Operators that MindSpore's CPU back end has only slowly, composed of its quick ones.

Measured on two cores with AVX-512, [1024, 3072] float32, forward / backward in ms (the composed
forms agree with float64 as closely as MindSpore's own):

    GeLU, tanh form       24 / 38    here  5 / 11
    bias of a Linear       1 / 7     here  1 / 1
    LayerNorm, H = 768     2 / 11    here  2 / 4

Two more things shape this file. The products and sums of two tensors of unequal shapes keep 4 times
their output's memory for as long as the graph lives, so a row or a column is spread by a product
with ones. And a Parameter that is given to a Cell with `bprop` is copied at every call, so outside
of training these Cells are not used. What a backward pass computes from values of the forward pass
alone would be computed in the forward pass already and kept; `ops.depend` ties it to the incoming
gradient.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore.ops.functional import isconstant

_LINEAR = 1.5957691216057308
"""2 sqrt(2 / pi)."""
_CUBIC = 0.044715 * _LINEAR


def more_than(size: int, few: int) -> bool:
    """Whether a size, which a graph knows when it is compiled, is above a limit; else it is not.

    Without the first question a graph of open sizes would get a branch.
    """
    return isconstant(size) and size > few


class GeluTanh(nn.Cell):
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh(u)) / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = ops.Sigmoid()
        self.sigmoid_grad = ops.auto_generate.SigmoidGrad()

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return x * self.sigmoid(x * (x * x * _CUBIC + _LINEAR))

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Computes the sigmoid again instead of keeping it."""
        x = ops.depend(x, dout)
        squares = x * x
        s = self.sigmoid(x * (squares * _CUBIC + _LINEAR))
        slope = x * (squares * (3.0 * _CUBIC) + _LINEAR)
        return (dout * s + self.sigmoid_grad(s, dout * slope),)


class AddBias(nn.Cell):
    """x + bias, whose gradient sums the rows by a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.BiasAdd()
        self.product = ops.MatMul()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: [T, n]; bias: [n]."""
        return self.add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        ones = ops.ones((1, dout.shape[0]), dout.dtype)
        return dout, self.product(ones, dout).reshape(bias.shape)


class LayerNorm(nn.Cell):
    """MindSpore's LayerNorm forward; its gradient from matrix products.

    With n = (x - mean) / sigma and g = dy * weight, dx = (g - mean(g) - n mean(g n)) / sigma.

    Args:
        eps: added to the variance.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.norm = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=eps)
        self.product = ops.MatMul()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [T, n]. Returns the result, and mean and variance [T, 1] for the backward pass."""
        return self.norm(x, weight, bias)

    def bprop(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Only the first output is differentiated."""
        _, mean, variance = out
        dy = dout[0]
        x, variance = ops.depend(x, dy), ops.depend(variance, dy)
        rows, size = x.shape
        across, down, over = (
            ops.ones((1, size), x.dtype),
            ops.ones((rows, 1), x.dtype),
            ops.ones((1, rows), x.dtype),
        )
        inverse = self.product(ops.rsqrt(variance + self.eps), across)
        normed = (x - self.product(mean, across)) * inverse
        both = dy * normed
        column = weight.reshape((size, 1)) * (1.0 / size)
        dx = dy * self.product(down, weight.reshape((1, size)))
        dx = dx - self.product(self.product(dy, column), across)
        dx = (dx - normed * self.product(self.product(both, column), across)) * inverse
        d_weight = self.product(over, both).reshape((size,))
        return dx, d_weight, self.product(over, dy).reshape((size,))


def rms_normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x: [T, n]; weight: [n]. Returns x / rms * weight, and 1 / rms [T, 1]."""
    product, size = ops.MatMul(), x.shape[1]
    mean = product(x * x, ops.ones((size, 1), x.dtype)) * (1.0 / size)
    inverse = ops.rsqrt(mean + eps)
    # One product spreads both factors: [1 / rms] [weight].
    return x * product(inverse, weight.reshape((1, size))), inverse


class RmsNorm(nn.Cell):
    """Root-mean-square norm from matrix products.

    With n = x / rms and g = dy * weight, dx = (g - n mean(g n)) / rms.

    Args:
        eps: added to the mean of the squares.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.product = ops.MatMul()

    def construct(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, n]. Returns the result, and 1 / rms [T, 1] for the backward pass."""
        return rms_normed(x, weight, self.eps)

    def bprop(
        self, x: Tensor, weight: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Only the first output is differentiated."""
        dy = dout[0]
        x, inverse = ops.depend(x, dy), ops.depend(out[1], dy)
        rows, size = x.shape
        across, over = ops.ones((1, size), x.dtype), ops.ones((1, rows), x.dtype)
        spread = self.product(inverse, across)
        normed = x * spread
        both = dy * normed
        column = weight.reshape((size, 1)) * (1.0 / size)
        mean = self.product(self.product(both, column), across)
        down = self.product(ops.ones((rows, 1), x.dtype), weight.reshape((1, size)))
        dx = (dy * down - normed * mean) * spread
        return dx, self.product(over, both).reshape((size,))


class SwiGlu(nn.Cell):
    """silu(gate) * up (Shazeer 2020), which keeps its two inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = ops.Sigmoid()
        self.sigmoid_grad = ops.auto_generate.SigmoidGrad()

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate, up: of one shape."""
        return gate * self.sigmoid(gate) * up

    def bprop(self, gate: Tensor, up: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of silu is sigmoid + gate sigmoid'."""
        gate, up = ops.depend(gate, dout), ops.depend(up, dout)
        s = self.sigmoid(gate)
        inner = dout * up
        return inner * s + self.sigmoid_grad(s, inner * gate), dout * gate * s


class Columns(nn.Cell):
    """Columns of a table as rows. MindSpore's gradient of this would transpose the whole table."""

    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.Gather()
        self.scatter = ops.ScatterNd()

    def construct(self, table: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
        """table: [n, V]; ids: int32 [T]; starts: int32 [1, n], 0, V, 2 V ... Returns [T, n]."""
        return self.gather(table, ids, 1).transpose((1, 0))

    def bprop(
        self, table: Tensor, ids: Tensor, starts: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds up the rows of each id in its column."""
        places = (ids.reshape((-1, 1)) + starts).reshape((-1, 1))
        gradient = self.scatter(places, dout.reshape((-1,)), (table.size,))
        return gradient.reshape(table.shape), ops.zeros_like(ids), ops.zeros_like(starts)
