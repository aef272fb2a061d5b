"""Exchanges between ranks: Cells for compiled graphs, and calls from the host.

What a back end lacks has its one replacement here. MindSpore's CPU back end sums float32 over any
group and broadcasts in any group from the host, and that is all: a maximum or a gather is a sum of
arrays that are zero but for each rank's own part, a message to one rank a broadcast in a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops

from lm_core.parallel.context import ParallelContext
from lm_core.parallel.traffic import bucket_bounds


class CopyToTensorParallel(nn.Cell):
    """The input of layers that are split by columns; its gradient is summed (f of Megatron-LM).

    Layers that share an input share this, so that there is one sum in the backward pass.
    """

    def __init__(self, group: str) -> None:
        super().__init__()
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape, the same on all ranks."""
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.sum(dout),)


class ReduceFromTensorParallel(nn.Cell):
    """The output of a layer that is split by rows: the sum over ranks (g of Megatron-LM)."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape, a part of the sum on each rank."""
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (dout,)


class GatherFromTensorParallel(nn.Cell):
    """Columns of all ranks side by side; not to be differentiated.

    Args:
        context: of this rank.
    """

    def __init__(self, context: ParallelContext) -> None:
        super().__init__()
        self.before, self.after = context.tp_rank, context.model_parallel - context.tp_rank - 1
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, context.tp_group)

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, n]. Returns [T, n * ranks]."""
        rows, columns = x.shape
        parts = (x,)
        if self.before:
            parts = (ops.zeros((rows, self.before * columns), x.dtype), *parts)
        if self.after:
            parts = (*parts, ops.zeros((rows, self.after * columns), x.dtype))
        return self.sum(ops.concat(parts, 1))


class FusedAllReduce(nn.Cell):
    """Sums many tensors over a group in few exchanges.

    Neighbours are laid end to end, so that the exchange of some runs while others are computed.
    The exchanges have one order on all ranks: two that do not depend on each other may be run in
    any order, and ranks whose graphs differ a little would wait for each other for ever.

    Args:
        group: the ranks.
        buckets: about how many exchanges.
        sizes: elements of each tensor.
    """

    def __init__(self, group: str, buckets: int, sizes: Sequence[int]) -> None:
        super().__init__(auto_prefix=False)
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group)
        self.bounds = tuple(bucket_bounds(sizes, buckets))

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns float32 tensors of the same shapes."""
        found = ()
        for start, end in self.bounds:
            flat = ()
            for tensor in tensors[start:end]:
                flat += (tensor.astype(ms.float32).reshape((-1,)),)
            joined = flat[0] if len(flat) == 1 else ops.concat(flat)
            summed = self.sum(ops.depend(joined, found) if found else joined)
            at = 0
            for tensor in tensors[start:end]:
                found += (summed[at : at + tensor.size].reshape(tensor.shape),)
                at += tensor.size
        return found


@cache
def _sum(group: str) -> ops.AllReduce:
    return ops.AllReduce(ops.ReduceOp.SUM, group)


def all_reduce(group: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sums float32 values over a group; "" is this rank alone."""
    array = np.asarray(values, np.float32)
    return _sum(group)(Tensor(array)).asnumpy() if group else array


def sum_over_data(context: ParallelContext, values: Sequence[float]) -> Sequence[float]:
    """Sums float64 values over the data-parallel ranks, in an order that is the same on all."""
    if not context.dp_group:
        return values
    # A float64 is the sum of three float32; adding the zeros of others changes none of them.
    table = np.zeros((context.data_parallel, len(values), 3), np.float32)
    for place, value in enumerate(values):
        rest = float(value)
        for digit in range(3):
            table[context.dp_rank, place, digit] = np.float32(rest)
            rest -= float(table[context.dp_rank, place, digit])
    found = all_reduce(context.dp_group, table).astype(np.float64)
    return [float(value) for value in found.sum(2).sum(0)]


def agreed(group: str, flag: bool) -> bool:
    """Whether the flag is set on any rank of the group; all get the same answer."""
    return bool(all_reduce(group, [float(flag)])[0] > 0.0)


def gathered(context: ParallelContext, value: int) -> list[int]:
    """A whole number (of up to 48 bits) of every rank, by rank."""
    table = np.zeros((context.world_size, 3), np.float32)
    table[context.rank] = [value >> 32, value >> 16 & 0xFFFF, value & 0xFFFF]
    found = all_reduce(context.world_group, table).astype(np.int64)
    return [int(high << 32 | middle << 16 | low) for high, middle, low in found]


def shared(context: ParallelContext, values: Sequence[int]) -> list[int]:
    """The list of rank 0, on all ranks; of whole numbers below 2 ** 24, which a float32 holds."""
    count = gathered(context, len(values))[0]
    row = np.zeros(count, np.float32)
    if context.rank == 0:
        row[:] = values
    return [int(value) for value in all_reduce(context.world_group, row)] if count else []


def send(context: ParallelContext, tensor: Tensor, stage: int) -> None:
    """Gives a tensor to the neighbouring stage, which must `receive` it now."""
    between = min(stage, context.stage)
    mint.distributed.broadcast(tensor, context.rank, context.pair_group(between))


def receive(context: ParallelContext, shape: tuple[int, ...], stage: int) -> Tensor:
    """Takes a float32 tensor from the neighbouring stage."""
    between = min(stage, context.stage)
    tensor = ops.zeros(shape, ms.float32)
    mint.distributed.broadcast(tensor, context.rank_at(stage=stage), context.pair_group(between))
    return tensor
