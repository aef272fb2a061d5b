"""Matrix products whose weight is stored [in, out].

Why [in, out]: one row times such a weight reads memory in order and reaches the read bandwidth of
the machine; the transposed layout reaches 60 % of it (tools/bench/RESULTS.md).
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.cpu import AddBias
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext


class Linear(nn.Cell):
    """`x @ weight + bias` on flat activations.

    Args:
        inputs: size of the last axis of x.
        outputs: size of the last axis of the result.
        bias: add a bias.
        std: standard deviation of the initial weight; the initial bias is 0.
        dtype: type of the parameters ("float32", "float16", "bfloat16").
        compute_dtype: type of the product; the result has the type of x.
    """

    split_dim: int | None = None
    """The dimension of `weight` that tensor parallelism splits."""
    adapter: nn.Cell | None
    """Adds to the result what it makes of x; None for a plain layer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        std: float,
        dtype: str = "float32",
        compute_dtype: str = "float32",
    ) -> None:
        super().__init__()
        kind = backend.DTYPES[dtype]
        self.std = std
        self.weight = Parameter(
            Tensor(np.zeros((inputs, outputs), np.float32), kind), name="weight"
        )
        self.bias = (
            Parameter(Tensor(np.zeros(outputs, np.float32), kind), name="bias") if bias else None
        )
        self.has_bias = bias
        self.compute_type = backend.compute_dtype(compute_dtype)
        self.cast_needed = not (self.compute_type == kind == ms.float32)
        self.adapter = None
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()
        self.on_cpu = backend.on_cpu()
        self.cpu_bias_add = AddBias()

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, inputs]. Returns [T, outputs]."""
        y = self.affine(x)
        return y if self.adapter is None else y + self.adapter(x)

    def affine(self, x: Tensor) -> Tensor:
        """x: [T, inputs]. Returns x @ weight + bias."""
        if self.cast_needed:
            y = self.matmul(
                x.astype(self.compute_type), self.weight.astype(self.compute_type)
            ).astype(x.dtype)
            return y if self.bias is None else y + self.bias.astype(x.dtype)
        y = self.matmul(x, self.weight)
        if not self.has_bias:
            return y
        if self.on_cpu and self.training:
            return self.cpu_bias_add(y, self.bias)
        return self.bias_add(y, self.bias)


class ColumnParallelLinear(Linear):
    """A Linear whose outputs are split over the tensor-parallel ranks (Megatron-LM, section 3)."""

    split_dim = 1

    def __init__(
        self, inputs: int, outputs: int, context: ParallelContext, what: str, **options: object
    ) -> None:
        super().__init__(inputs, context.shard(outputs, what), **options)  # type: ignore[arg-type]


class RowParallelLinear(Linear):
    """A Linear whose inputs are split over the tensor-parallel ranks.

    The partial results are summed, then the bias is added.
    """

    split_dim = 0

    def __init__(
        self, inputs: int, outputs: int, context: ParallelContext, what: str, **options: object
    ) -> None:
        super().__init__(context.shard(inputs, what), outputs, **options)  # type: ignore[arg-type]
