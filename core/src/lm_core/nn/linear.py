"""Matrix products whose weight is stored [in, out].

Why [in, out]: one row times such a weight reads memory in order and reaches the read bandwidth of
the machine; the transposed layout reaches 60 % of it (tools/bench/RESULTS.md).
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.cpu import AddBias
from lm_core.parallel import backend
from lm_core.parallel.collectives import CopyToTensorParallel, ReduceFromTensorParallel
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import WHOLE, Cut


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

    cut: Cut = WHOLE
    """How tensor parallelism splits `weight`."""
    tp_rank: int = 0
    """Which part of it this rank holds."""
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
        self.compute_type = backend.compute_dtype(compute_dtype)
        self.cast_needed = not (self.compute_type == kind == ms.float32)
        self.adapter = None
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()
        self.on_cpu = backend.on_cpu()
        self.cpu_bias_add = AddBias()

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, inputs]. Returns [T, outputs]."""
        return self.add_bias(self.adapted(x))

    def cuts(self) -> dict[str, Cut]:
        """How tensor parallelism splits each parameter, the adapter's included."""
        found = {self.weight.name: self.cut}
        if self.bias is not None and self.cut.dim == 1:
            found[self.bias.name] = Cut(0, self.cut.parts)
        return found if self.adapter is None else found | self.adapter.cuts(self.cut)

    def partial(self) -> set[str]:
        """Parameters that all ranks hold and of whose gradient each has a part."""
        return set() if self.adapter is None else self.adapter.partial(self.cut)

    def adapted(self, x: Tensor) -> Tensor:
        """x: [T, inputs]. Returns x @ weight, and what the adapter adds."""
        if self.cast_needed:
            y = self.matmul(x.astype(self.compute_type), self.weight.astype(self.compute_type))
            y = y.astype(x.dtype)
        else:
            y = self.matmul(x, self.weight)
        return y if self.adapter is None else y + self.adapter(x)

    def add_bias(self, y: Tensor) -> Tensor:
        """y: [T, outputs]."""
        if self.bias is None:
            return y
        if self.cast_needed:
            return y + self.bias.astype(y.dtype)
        if self.on_cpu and self.training:
            return self.cpu_bias_add(y, self.bias)
        return self.bias_add(y, self.bias)


class ColumnParallelLinear(Linear):
    """A Linear whose outputs are split over the tensor-parallel ranks (Megatron-LM, section 3).

    Its input must have passed a `CopyToTensorParallel`, which all layers of one input share.

    Args:
        inputs: size of the last axis of x, on every rank.
        outputs: size of the last axis of the result, over all ranks.
        context: the ranks.
        what: the outputs, in words.
        groups: outputs stay together in so many groups (heads); with fewer groups than ranks,
            neighbours hold the same one.
        options: of Linear.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: ParallelContext,
        what: str,
        groups: int | None = None,
        **options: Any,
    ) -> None:
        ranks = context.model_parallel
        parts = ranks if groups is None else min(ranks, groups)
        own = context.shard(outputs, what) if parts == ranks else outputs // parts
        super().__init__(inputs, own, **options)
        if ranks > 1:
            self.cut, self.tp_rank = Cut(1, parts), context.tp_rank * parts // ranks


class RowParallelLinear(Linear):
    """A Linear whose inputs are split over the tensor-parallel ranks.

    The partial results are summed, then the bias is added.
    """

    def __init__(
        self, inputs: int, outputs: int, context: ParallelContext, what: str, **options: Any
    ) -> None:
        super().__init__(context.shard(inputs, what), outputs, **options)
        self.reduce = None
        if context.model_parallel > 1:
            self.cut, self.tp_rank = Cut(0, context.model_parallel), context.tp_rank
            self.reduce = ReduceFromTensorParallel(context.tp_group)

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, inputs / ranks]. Returns [T, outputs], the same on all ranks."""
        y = self.adapted(x)
        return self.add_bias(y if self.reduce is None else self.reduce(y))


def shared_input(context: ParallelContext) -> nn.Cell:
    """What the input of column-parallel layers passes; an identity for one rank."""
    if context.model_parallel == 1:
        return nn.Identity()
    return CopyToTensorParallel(context.tp_group)
