"""What the ranks of a training step exchange: gradients, loss and gradient norm."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from lm_core.parallel import backend
from lm_core.parallel.collectives import FusedAllReduce
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import TABLE

if TYPE_CHECKING:
    from lm_core.nn.network import Network


class Reduction(nn.Cell):
    """Sums gradients over all ranks that have a part of them.

    These are the data-parallel ranks; for a tied table also both ends of the pipeline; for weights
    that all tensor-parallel ranks hold beside ones that they share (a factor of LoRA) these ranks;
    and for heads of keys and values of which there are fewer than ranks, those with the same.
    Loss and number of tokens come from the last stage, once for all tensor-parallel ranks.

    Each exchange waits for the one before: stages have different graphs, and would else meet in
    different orders.

    Args:
        model: knows the place of this rank.
        weights: whose gradients these are.
    """

    def __init__(self, model: Network, weights: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        context: ParallelContext = model.context
        staged = context.pipeline_stage > 1
        group = context.world_group if staged else context.dp_group
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group) if group else None
        gives = context.is_last_stage and (context.tp_rank == 0 or not staged)
        self.share = 1.0 if gives else 0.0
        partial = model.partial()
        repeated = repeated_parts(model)
        sharers = list(sharers_of(model))
        backend.make_groups(sharers)
        self.sums = (
            _Sum(context.ends_group, weights, {TABLE} if model.is_tied else set()),
            _Sum(context.tp_group, weights, partial),
            _Sum(sharers[0][0] if sharers else "", weights, set(repeated)),
            _Sum(
                context.dp_group,
                weights,
                {weight.name for weight in weights},
                context.gradient_aggregation_group,
            ),
        )

    def construct(
        self, total: Tensor, count: Tensor, gradients: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Returns the same of all ranks."""
        if self.sum is not None:
            both = self.sum(ops.stack((total, count)) * self.share)
            total, count = both[0], both[1]
            waiting = ()
            for gradient in gradients:
                waiting += (ops.depend(gradient, both),)
            gradients = waiting
        for step in self.sums:
            gradients = step(gradients)
        return total, count, gradients


def repeated_parts(model: Network) -> dict[str, int]:
    """Parameters of which other tensor-parallel ranks hold the same part, and how many parts."""
    ranks = model.context.model_parallel
    return {name: own.parts for name, own in model.cuts().items() if own.parts < ranks}


def sharers_of(model: Network) -> Iterator[tuple[str, list[int]]]:
    """Name and ranks of the group that holds the same heads of keys and values, if there is one."""
    for parts in set(repeated_parts(model).values()):
        yield model.context.sharers(parts)


class _Sum(nn.Cell):
    """Sums some of the gradients over a group; none where there is no group or no such gradient.

    Args:
        group: the ranks.
        weights: of all gradients.
        names: of the weights whose gradients are summed.
        buckets: about how many exchanges.
    """

    def __init__(
        self, group: str, weights: Sequence[Parameter], names: Collection[str], buckets: int = 1
    ) -> None:
        super().__init__(auto_prefix=False)
        chosen = [i for i, weight in enumerate(weights) if weight.name in names] if group else []
        self.chosen = tuple(chosen)
        self.places = tuple(chosen.index(i) if i in chosen else -1 for i in range(len(weights)))
        sizes = [prod(weights[i].shape) for i in chosen]
        self.sum = FusedAllReduce(group, buckets, sizes) if chosen else None

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.sum is None:
            return gradients
        parts = ()
        for i in self.chosen:
            parts += (gradients[i],)
        summed = self.sum(parts)
        found = ()
        for i in range(len(gradients)):
            found += (gradients[i] if self.places[i] < 0 else summed[self.places[i]],)
        return found


class SquaredNorm(nn.Cell):
    """Sum of the squares of all gradients of the model, a float32 scalar.

    Args:
        context: the place of this rank.
        shares: of each gradient: the part of its squares that this rank adds.
    """

    def __init__(self, context: ParallelContext, shares: Sequence[float]) -> None:
        super().__init__(auto_prefix=False)
        self.shares = tuple(shares)
        group = context.model_group
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group) if group else None

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        total = Tensor(0.0, ms.float32)
        for i in range(len(gradients)):
            # Row sums first: adding 38 million squares one after the other would cost 4 digits.
            rows = ops.ReduceSum()(ops.square(gradients[i].astype(ms.float32)), -1)
            squares = ops.ReduceSum()(rows)
            total = total + (squares if self.shares[i] == 1.0 else squares * self.shares[i])
        return total if self.sum is None else self.sum(total.reshape((1,))).reshape(())


def counted_shares(model: Network, weights: Sequence[Parameter]) -> list[float]:
    """What part of each gradient's squares this rank adds, so that all count once in the model."""
    context, cuts = model.context, model.cuts()
    found = []
    for weight in weights:
        parts = cuts[weight.name].parts if weight.name in cuts else 1
        again = weight.name == TABLE and not context.is_first_stage
        found.append(0.0 if again else parts / context.model_parallel)
    return found
