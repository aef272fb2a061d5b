"""What is set once a process."""

from __future__ import annotations

import sys

from mindspore import Tensor, nn

from lm_core.parallel import backend


class Inner(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return x + 1.0


class Outer(nn.Cell):
    def __init__(self, inner: nn.Cell) -> None:
        super().__init__()
        self.inner = inner

    def construct(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_graphs_may_be_deeper_than_mindspore_allows():
    """Its own limit is 1,000 calls within calls; a training step of 24 blocks has more."""
    backend.setup()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # MindSpore walks through parts of parts in Python
    try:
        cell: nn.Cell = Inner()
        for _ in range(1010):
            cell = Outer(cell)
        assert cell(Tensor(1.0)).asnumpy() == 2.0
    finally:
        sys.setrecursionlimit(before)
