"""Token and position tables."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext


class Embedding(nn.Cell):
    """Rows of a table [count, H]."""

    split_dim: int | None = None

    def __init__(self, count: int, hidden: int, *, std: float, dtype: str = "float32") -> None:
        super().__init__()
        self.std = std
        self.weight = Parameter(
            Tensor(np.zeros((count, hidden), np.float32), backend.DTYPES[dtype]), name="weight"
        )
        self.gather = ops.Gather()

    def construct(self, ids: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        return self.gather(self.weight, ids, 0)


class VocabParallelEmbedding(Embedding):
    """An Embedding whose rows are split over the tensor-parallel ranks."""

    split_dim = 0

    def __init__(
        self, count: int, hidden: int, context: ParallelContext, **options: object
    ) -> None:
        super().__init__(context.shard(count, "vocabulary rows"), hidden, **options)  # type: ignore[arg-type]
