"""Optimizer state that the data-parallel ranks share (ZeRO stage 1, Rajbhandari et al. 2020).

Each rank keeps the state of its own slice of every large weight, updates that slice, and gets the
others from the ranks that own them. The rule itself is that of one process, over smaller weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.parallel.collectives import FusedAllReduce
from lm_core.parallel.context import ParallelContext
from lm_core.train.optimizer import Optimizer

_OWN = ".own."
"""Before the name of a weight; with both points, since names end in "down." as well."""


class ShardedOptimizer(Optimizer):
    """An update rule over this rank's slices.

    Args:
        parameters: the weights.
        rule: makes the rule for what this rank updates.
        dims: for each weight the dimension of the slices; None: every rank updates all of it.
        context: the ranks that share the state.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        rule: Callable[[Sequence[Parameter]], Optimizer],
        dims: Sequence[int | None],
        context: ParallelContext,
    ) -> None:
        super().__init__(parameters)
        self.slices = tuple(
            None if dim is None else Slice(dim, weight.shape[dim], context)
            for weight, dim in zip(parameters, dims, strict=True)
        )
        own = [
            weight if part is None else part.parameter(weight)
            for weight, part in zip(parameters, self.slices, strict=True)
        ]
        self.rule = rule(own)
        self.shared = tuple(i for i, part in enumerate(self.slices) if part is not None)
        sizes = [prod(parameters[i].shape) for i in self.shared]
        buckets = context.gradient_aggregation_group
        self.exchange = FusedAllReduce(context.dp_group, buckets, sizes)

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        return self.rule.scalars(learning_rate, update)

    def state(self) -> dict[str, Parameter]:
        """This rank's part of the state, under the names of the whole."""
        return {name.replace(_OWN, ".", 1): p for name, p in self.rule.state().items()}

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor, *scalars: Tensor) -> Tensor:
        own, done = (), factor
        for i in range(len(gradients)):
            part = self.slices[i]
            if part is None:
                own += (gradients[i],)
            else:
                # Also after weights were loaded, the slice is that of the weight of this moment.
                taken = ops.assign(self.rule.parameters[i], part.take(self.parameters[i]))
                own += (ops.depend(part.take(gradients[i]), taken),)
        done = self.rule(own, factor, *scalars)
        whole = ()
        for i in self.shared:
            new = ops.depend(self.rule.parameters[i], done)
            part = self.slices[i]
            whole += (part.place(new.astype(ms.float32)),)  # type: ignore[union-attr]
        whole = self.exchange(whole)
        for k in range(len(self.shared)):
            weight = self.parameters[self.shared[k]]
            done = ops.depend(done, ops.assign(weight, whole[k].astype(weight.dtype)))
        return done


class Slice(nn.Cell):
    """A data-parallel rank's part of a weight.

    Args:
        dim: 0 or 1, of a matrix.
        size: of that dimension.
        context: the ranks that share it.
    """

    def __init__(self, dim: int, size: int, context: ParallelContext) -> None:
        super().__init__(auto_prefix=False)
        self.dim = dim
        self.count = size // context.data_parallel
        self.first = context.dp_rank * self.count
        self.after = size - self.first - self.count

    def parameter(self, weight: Parameter) -> Parameter:
        """A parameter for this part of a weight."""
        shape = tuple(self.count if dim == self.dim else n for dim, n in enumerate(weight.shape))
        zeros = Tensor(np.zeros(shape, np.float32), weight.dtype)
        return Parameter(zeros, name=f"{_OWN[1:]}{weight.name}", requires_grad=False)

    def take(self, x: Tensor) -> Tensor:
        """x: the whole. Returns this part."""
        if self.dim == 0:
            return x[self.first : self.first + self.count]
        return x[:, self.first : self.first + self.count]

    def place(self, x: Tensor) -> Tensor:
        """x: this part. Returns the whole, zero elsewhere."""
        rows, columns = x.shape
        parts = (x,)
        if self.first:
            shape = (self.first, columns) if self.dim == 0 else (rows, self.first)
            parts = (ops.zeros(shape, x.dtype), *parts)
        if self.after:
            shape = (self.after, columns) if self.dim == 0 else (rows, self.after)
            parts = (*parts, ops.zeros(shape, x.dtype))
        return ops.concat(parts, self.dim)
