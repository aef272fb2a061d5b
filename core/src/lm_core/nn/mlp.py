"""Feed-forward blocks."""

from __future__ import annotations

from mindspore import Tensor, nn

from lm_core.nn.activation import activation
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear, shared_input
from lm_core.parallel.context import ParallelContext


class Mlp(nn.Cell):
    """down(act(up(x))), as in the original transformer.

    Args:
        hidden: H.
        inner: F.
        act: name of the activation.
        context: the ranks that share F.
        std: standard deviation of the initial weights of `up`.
        out_std: the same of `down`.
        options: for both Linear layers (`dtype`, `compute_dtype`, `bias`).
    """

    def __init__(
        self,
        hidden: int,
        inner: int,
        act: str,
        context: ParallelContext,
        *,
        std: float,
        out_std: float,
        **options: object,
    ) -> None:
        super().__init__()
        self.enter = shared_input(context)
        self.up = ColumnParallelLinear(
            hidden, inner, context, "feed-forward columns", std=std, **options
        )
        self.act = activation(act)
        self.down = RowParallelLinear(
            inner, hidden, context, "feed-forward rows", std=out_std, **options
        )

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, H]."""
        return self.down(self.act(self.up(self.enter(x))))
