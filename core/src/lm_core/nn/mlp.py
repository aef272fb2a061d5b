"""Feed-forward blocks."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from lm_core.nn import cpu
from lm_core.nn.activation import activation
from lm_core.nn.linear import ColumnParallelLinear, RowParallelLinear, shared_input
from lm_core.parallel import backend
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
        **options: Any,
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


class GatedMlp(nn.Cell):
    """down(silu(gate(x)) * up(x)), "SwiGLU" (Shazeer 2020).

    Args:
        hidden: H.
        inner: F.
        context: the ranks that share F.
        std: standard deviation of the initial weights.
        options: for all three Linear layers (`dtype`, `compute_dtype`, `bias`).
    """

    def __init__(
        self,
        hidden: int,
        inner: int,
        context: ParallelContext,
        *,
        std: float,
        **options: Any,
    ) -> None:
        super().__init__()
        columns = "feed-forward columns"
        self.enter = shared_input(context)
        self.gate = ColumnParallelLinear(hidden, inner, context, columns, std=std, **options)
        self.up = ColumnParallelLinear(hidden, inner, context, columns, std=std, **options)
        self.down = RowParallelLinear(
            inner, hidden, context, "feed-forward rows", std=std, **options
        )
        self.on_cpu = backend.on_cpu()
        self.cpu_act = cpu.SwiGlu()

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, H]."""
        x = self.enter(x)
        gate, up = self.gate(x), self.up(x)
        if self.on_cpu and self.training:
            return self.down(self.cpu_act(gate, up))
        return self.down(ops.silu(gate) * up)
