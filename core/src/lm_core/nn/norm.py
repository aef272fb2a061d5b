"""Normalisation layers with the parameter names `weight` and `bias`."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn import cpu
from lm_core.parallel import backend

_FEW = 64
"""Rows for which it is quicker to start fewer kernels, and of little weight what they keep."""


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016), in float32.

    Args:
        size: length of the last axis.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(size, np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(size, np.float32)), name="bias")
        self.norm = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=eps)
        # Not where it is recomputed: beside dropout, MindSpore then finds a cycle in the graph.
        self.composed = backend.on_cpu()
        self.cpu_norm = cpu.LayerNorm(eps)

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, size]. Returns the same shape."""
        if self.composed and self.training:
            y, _, _ = self.cpu_norm(x, self.weight, self.bias)
        else:
            y, _, _ = self.norm(x, self.weight, self.bias)
        return y


class RmsNorm(nn.Cell):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in float32.

    Args:
        size: length of the last axis.
        eps: added to the mean of the squares.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(size, np.float32)), name="weight")
        self.eps = eps
        self.mean = ops.ReduceMean(keep_dims=True)
        self.on_cpu = backend.on_cpu()
        self.cpu_norm = cpu.RmsNorm(eps)

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, size]. Returns the same shape and type."""
        y = x.astype(ms.float32)
        if self.on_cpu and self.training:
            y, _ = self.cpu_norm(y, self.weight)
        elif self.on_cpu and cpu.more_than(x.shape[0], _FEW):
            y, _ = cpu.rms_normed(y, self.weight, self.eps)
        else:
            y = y * ops.rsqrt(self.mean(y * y, -1) + self.eps) * self.weight
        return y.astype(x.dtype)
