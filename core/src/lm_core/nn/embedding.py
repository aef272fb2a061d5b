"""Token and position tables, and the output head."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.cpu import Columns
from lm_core.nn.linear import ColumnParallelLinear, shared_input
from lm_core.parallel import backend
from lm_core.parallel.collectives import ReduceFromTensorParallel
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import WHOLE, Cut

INVERSE_NORMS = "inverse_norms"
"""A parameter of `NormHead` that is no weight."""


class Embedding(nn.Cell):
    """Rows of a table [count, H]."""

    cut: Cut = WHOLE
    """How tensor parallelism splits `weight`."""
    tp_rank: int = 0
    """Which part of it this is."""

    def __init__(self, count: int, hidden: int, *, std: float, dtype: str = "float32") -> None:
        super().__init__()
        self.std = std
        self.weight = Parameter(
            Tensor(np.zeros((count, hidden), np.float32), backend.DTYPES[dtype]), name="weight"
        )
        self.gather = ops.Gather()

    def cuts(self) -> dict[str, Cut]:
        """How tensor parallelism splits the table."""
        return {self.weight.name: self.cut}

    def partial(self) -> set[str]:
        """None: each rank has the whole gradient of what it holds."""
        return set()

    def construct(self, ids: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        return self.gather(self.weight, ids, 0)


class OwnIds(nn.Cell):
    """Which ids have their row of a table on this rank (Megatron-LM, section 3).

    Args:
        size: rows of this rank.
        context: the ranks that share the table.
    """

    def __init__(self, size: int, context: ParallelContext) -> None:
        super().__init__()
        self.first, self.last = context.tp_rank * size, (context.tp_rank + 1) * size - 1
        self.reduce = ReduceFromTensorParallel(context.tp_group)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: int32 [T]. Returns rows of this part [T], and 1.0 or 0.0 [T]: whether it is own."""
        own = ops.logical_and(ids >= self.first, ids <= self.last)
        inside = ops.clamp(ids, self.first, self.last) - self.first
        return inside, own.astype(ms.float32)


def _splits_rows(context: ParallelContext) -> bool:
    return context.model_parallel > 1 and not context.vocab_emb_dp


def _rows_of(count: int, context: ParallelContext) -> int:
    """Rows of a vocabulary that a rank holds."""
    return context.shard(count, "rows of the vocabulary") if _splits_rows(context) else count


class VocabParallelEmbedding(Embedding):
    """An Embedding whose rows are split over the tensor-parallel ranks, unless `vocab_emb_dp`."""

    def __init__(self, count: int, hidden: int, context: ParallelContext, **options: Any) -> None:
        rows = _rows_of(count, context)
        super().__init__(rows, hidden, **options)  # type: ignore[arg-type]
        self.own = None
        if _splits_rows(context):
            self.cut, self.tp_rank = Cut(0, context.model_parallel), context.tp_rank
            self.own = OwnIds(rows, context)

    def construct(self, ids: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H], the same on all ranks."""
        if self.own is None:
            return self.gather(self.weight, ids, 0)
        rows, is_own = self.own(ids)
        found = self.gather(self.weight, rows, 0) * is_own.astype(self.weight.dtype).reshape(
            (-1, 1)
        )
        return self.own.reduce(found)


class TiedEmbedding(nn.Cell):
    """One table as embedding and output head (Press and Wolf 2017), stored [H, V].

    Stored as a head because a decoding step reads the whole head and only B columns of the
    embedding: a row times [H, V] runs at 1.6 times the speed of a row times [V, H] transposed.

    Args:
        count: V over all ranks; unless `vocab_emb_dp`, the columns are split over the
            tensor-parallel ranks.
        hidden: H.
        context: the ranks that share the vocabulary.
        std: standard deviation of the initial values.
        dtype: type of the table.
    """

    cut: Cut = WHOLE
    """How tensor parallelism splits `weight`."""
    tp_rank: int = 0
    """Which part of it this is."""

    def __init__(
        self,
        count: int,
        hidden: int,
        context: ParallelContext,
        *,
        std: float,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.std = std
        columns = _rows_of(count, context)
        self.weight = Parameter(
            Tensor(np.zeros((hidden, columns), np.float32), backend.DTYPES[dtype]), name="weight"
        )
        self.own = None
        if _splits_rows(context):
            self.cut, self.tp_rank = Cut(1, context.model_parallel), context.tp_rank
            self.own = OwnIds(columns, context)
        self.enter = shared_input(context) if self.own is not None else nn.Identity()
        self.columns = Columns()
        self.gather = ops.Gather()
        self.product = ops.MatMul()

    def cuts(self) -> dict[str, Cut]:
        """How tensor parallelism splits the table."""
        return {self.weight.name: self.cut}

    def partial(self) -> set[str]:
        """None: each rank has the whole gradient of what it holds."""
        return set()

    def construct(self, ids: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H], the same on all ranks."""
        if self.own is None:
            return self.rows(ids)
        inside, is_own = self.own(ids)
        return self.own.reduce(self.rows(inside) * is_own.reshape((-1, 1)))

    def rows(self, ids: Tensor) -> Tensor:
        """ids: int32 [T], of columns that this rank holds. Returns [T, H]."""
        if not self.training:
            return self.gather(self.weight, ids, 1).transpose((1, 0))
        hidden, vocabulary = self.weight.shape
        starts = Tensor(np.arange(hidden, dtype=np.int32).reshape(1, -1) * vocabulary)
        return self.columns(self.weight, ids, starts)

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, V], or this rank's columns of it."""
        return self.product(self.enter(x), self.weight)


class Head(ColumnParallelLinear):
    """An output head with weights of its own, [H, V], split where the ranks divide V.

    Args:
        hidden: H.
        count: V over all ranks.
        context: the ranks that share the vocabulary.
        options: of a Linear.
    """

    def __init__(self, hidden: int, count: int, context: ParallelContext, **options: Any) -> None:
        split = count % context.model_parallel == 0
        shared = context if split else ParallelContext.local()
        super().__init__(hidden, count, shared, "rows of the vocabulary", bias=False, **options)
        self.enter = shared_input(shared)

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, V], or this rank's columns of it."""
        return super().construct(self.enter(x))

    def prepare(self) -> None:
        """What `step` needs of the weight, worked out once for many steps: nothing."""

    def step(self, x: Tensor) -> Tensor:
        """As `construct`, after `prepare`."""
        return self.construct(x)


class NormHead(Head):
    """An output head that reads the directions of its columns only (Baichuan 2, section 2.2.4).

    Logits are x W / |w_v|, with the length of each word's column, at least 1e-12 as where it comes
    from. The weight stays as it is: in training the lengths are part of the network, and while
    generating they are worked out once for each prompt.
    """

    def __init__(self, hidden: int, count: int, context: ParallelContext, **options: Any) -> None:
        super().__init__(hidden, count, context, **options)
        columns = self.weight.shape[1]
        self.inverse_norms = Parameter(
            Tensor(np.zeros((1, columns), np.float32)), name=INVERSE_NORMS, requires_grad=False
        )
        self.normed = NormedProduct()

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns float32 [T, V], or this rank's columns of it."""
        logits, _ = self.normed(self.enter(x).astype(ms.float32), self.weight.astype(ms.float32))
        return logits

    def prepare(self) -> None:
        """Works out the lengths."""
        ops.assign(self.inverse_norms, inverse_norms(self.weight.astype(ms.float32)))

    def step(self, x: Tensor) -> Tensor:
        """x: [B, H]."""
        return (
            self.matmul(x.astype(ms.float32), self.weight.astype(ms.float32)) * self.inverse_norms
        )


def inverse_norms(weight: Tensor) -> Tensor:
    """float32 [H, V]. Returns 1 / max(|w_v|, 1e-12), [1, V]."""
    squares = ops.MatMul()(ops.ones((1, weight.shape[0]), ms.float32), weight * weight)
    return ops.rsqrt(ops.maximum(squares, Tensor(1e-24, ms.float32)))


class NormedProduct(nn.Cell):
    """Y = X W / |w_v|, [T, V], with a backward pass that keeps Y alone.

    With g = dY / |w_v|: dX = g W^T and dW = X^T g - W diag(sum_t(Y dY) / |w_v|^2). Factors of
    columns are spread over rows by a product: on CPU, MindSpore keeps 4 times what a broadcasting
    multiplication gives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = ops.MatMul()
        self.product_bt = ops.MatMul(transpose_b=True)
        self.product_at = ops.MatMul(transpose_a=True)

    def construct(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x: float32 [T, H]; weight: float32 [H, V]. Returns Y, and 1 / |w_v| [1, V]."""
        inverse = inverse_norms(weight)
        return self.product(x, weight) * self.spread(inverse, x.shape[0]), inverse

    def spread(self, row: Tensor, count: int) -> Tensor:
        """row: [1, V]. Returns it `count` times, [count, V]."""
        return self.product(ops.ones((count, 1), row.dtype), row)

    def bprop(
        self, x: Tensor, weight: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Only the first output is differentiated."""
        y, inverse = out
        dy = dout[0]
        # Tied to the gradient: else it would be found equal to the forward pass, and be kept.
        g = dy * self.spread(ops.depend(inverse, dy), x.shape[0])
        along = self.product(ops.ones((1, x.shape[0]), x.dtype), y * dy) * inverse * inverse
        away = weight * self.spread(along, weight.shape[0])
        return self.product_bt(g, weight), self.product_at(x, g) - away
