"""Token cross entropy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from lm_core.config.model import IGNORED
from lm_core.nn.embedding import OwnIds
from lm_core.parallel.context import ParallelContext


class CrossEntropy(nn.Cell):
    """Sum over tokens of -log softmax(logits)[label], and how many tokens count; in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()

    def construct(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """logits: [T, V]; labels: int32 [T], IGNORED where not trained. Returns scalars."""
        losses, kept = self.of_tokens(logits, labels)
        return losses.sum(), kept.sum()

    def of_tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same of each token: its loss, 0 where it does not count, and 1 where it does, [T]."""
        kept = (labels != IGNORED).astype("float32")
        safe = ops.maximum(labels, 0).reshape((-1, 1))
        losses = -self.pick(self.log_softmax(logits.astype("float32")), 1, safe).reshape((-1,))
        return losses * kept, kept


class LogSumExp(nn.Cell):
    """log sum exp over columns that are spread over the tensor-parallel ranks.

    It has a gradient of its own, dout exp(x) / sum, so that nothing is differentiated through the
    exchanges. Rows are spread by products with ones, as everywhere (lm_core.nn.cpu).

    Args:
        context: the ranks that share the columns.
    """

    def __init__(self, context: ParallelContext) -> None:
        super().__init__()
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, context.tp_group)
        own = np.zeros((1, context.model_parallel), np.float32)
        own[0, context.tp_rank] = 1.0
        self.own = Tensor(own)
        self.product = ops.MatMul()
        self.row_sum = ops.ReduceSum(keep_dims=True)
        self.row_max = ops.ReduceMax(keep_dims=True)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: float32 [T, V / ranks]. Returns the result [T, 1], exponentials and their sums."""
        across = ops.ones((1, x.shape[1]), x.dtype)
        # CPU ranks can only add: each gives its maximum in a column of its own.
        highest = self.row_max(self.sum(self.product(self.row_max(x, 1), self.own)), 1)
        powers = ops.exp(x - self.product(highest, across))
        total = self.sum(self.row_sum(powers, 1))
        return ops.log(total) + highest, powers, total

    def bprop(
        self, x: Tensor, out: tuple[Tensor, Tensor, Tensor], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor]:
        """Only the first output is differentiated."""
        _, powers, total = out
        across = ops.ones((1, x.shape[1]), x.dtype)
        return (powers * self.product(dout[0] / total, across),)


class VocabParallelCrossEntropy(nn.Cell):
    """As CrossEntropy, of logits whose columns are spread over the tensor-parallel ranks.

    Args:
        columns: of this rank.
        context: the ranks that share the vocabulary.
    """

    def __init__(self, columns: int, context: ParallelContext) -> None:
        super().__init__()
        self.log_sum_exp = LogSumExp(context)
        self.own = OwnIds(columns, context)
        self.pick = ops.GatherD()

    def construct(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """logits: [T, V / ranks]; labels: int32 [T], IGNORED where not trained. Returns scalars."""
        losses, kept = self.of_tokens(logits, labels)
        return losses.sum(), kept.sum()

    def of_tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As CrossEntropy.of_tokens."""
        logits = logits.astype(ms.float32)
        kept = (labels != IGNORED).astype(ms.float32)
        inside, is_own = self.own(ops.maximum(labels, 0))
        chosen = self.pick(logits, 1, inside.reshape((-1, 1))).reshape((-1,)) * is_own
        chosen = self.own.reduce(chosen)
        losses = self.log_sum_exp(logits)[0].reshape((-1,)) - chosen
        return losses * kept, kept
