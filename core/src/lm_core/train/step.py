"""One update of the weights as one compiled graph.

Forward, loss, backward, sum over data-parallel ranks, global norm, clipping, unscaling and the
update rule compile together; without gradient accumulation no gradient is ever stored between
calls. With it there are two graphs: one adds the gradients of a micro-batch to buffers, the other
applies them.

Gradients are those of the *sum* of the token losses, divided by the number of tokens of the whole
step at its end, so that every token counts alike however a step is cut into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

if TYPE_CHECKING:
    from lm_core.nn.network import Network
    from lm_core.train.optimizer import Optimizer

MicroBatch = tuple[np.ndarray, np.ndarray]
"""input_ids and labels, int32 [B, S]; labels[b, t] follows input_ids[b, t], -100 is not trained."""


@dataclass(frozen=True)
class StepResult:
    """What one step tells the host.

    Attributes:
        loss: mean over the trained tokens (or records, of which each has one class).
        grad_norm: global norm of the mean gradient, before clipping.
        tokens: how many of these.
        skipped: the loss or a gradient was not finite and nothing was changed.
    """

    loss: float
    grad_norm: float
    tokens: int
    skipped: bool


class Gradients(nn.Cell):
    """Loss terms of a micro-batch and the gradients of `scale * sum of token losses`.

    Args:
        model: has `loss_terms`.
        weights: what to differentiate by.
        reduce: sums a tensor over the data-parallel ranks; None for one rank.
    """

    def __init__(
        self, model: Network, weights: ParameterTuple, reduce: nn.Cell | None = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.reduce = reduce
        self.differentiate = ms.value_and_grad(self.scaled, None, weights=weights, has_aux=True)

    def scaled(
        self, input_ids: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss to differentiate, and beside it the sum and number of token losses."""
        total, count = self.model.loss_terms(input_ids, labels)
        return total * scale, total, count

    def construct(
        self, input_ids: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Returns sum of token losses, number of tokens, gradients."""
        (_, total, count), gradients = self.differentiate(input_ids, labels, scale)
        if self.reduce is None:
            return total, count, gradients
        summed = ()
        for gradient in gradients:
            summed += (self.reduce(gradient),)
        return self.reduce(total), self.reduce(count), summed


class SquaredNorm(nn.Cell):
    """Sum of the squares of all gradients, a float32 scalar."""

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        total = Tensor(0.0, ms.float32)
        for gradient in gradients:
            # Row sums first: adding 38 million squares one after the other would cost 4 digits.
            rows = ops.ReduceSum()(ops.square(gradient.astype(ms.float32)), -1)
            total = total + ops.ReduceSum()(rows)
        return total


class Update(nn.Cell):
    """Unscales and clips gradients and applies them, unless one or the loss is not finite.

    Args:
        optimizer: the update rule.
        max_grad_norm: gradients are scaled down to this global norm; None: never.
        squared_norm: replaces SquaredNorm where gradients are spread over ranks.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_grad_norm: float | None,
        squared_norm: nn.Cell | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.squared_norm = squared_norm or SquaredNorm()

    def construct(
        self,
        gradients: tuple[Tensor, ...],
        total: Tensor,
        unscale: Tensor,
        scalars: tuple[Tensor, ...],
    ) -> Tensor:
        """`gradients * unscale` is the mean gradient, `total` the loss. Returns the norm."""
        norm = ops.sqrt(self.squared_norm(gradients)) * unscale
        factor = unscale
        if self.max_grad_norm is not None:
            factor = unscale * ops.minimum(self.max_grad_norm / (norm + 1e-6), 1.0)
        # An infinite loss may have finite gradients: float16 logits overflow to minus infinity.
        if ops.isfinite(norm + total):
            norm = ops.depend(norm, self.optimizer(gradients, factor, *scalars))
        return norm


class FusedStep(nn.Cell):
    """A whole step with one micro-batch."""

    def __init__(self, gradients: Gradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.update = update

    def construct(
        self, input_ids: Tensor, labels: Tensor, scale: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sum of token losses, number of tokens, gradient norm."""
        total, count, gradients = self.gradients(input_ids, labels, scale)
        unscale = 1.0 / (scale * ops.maximum(count, 1.0))
        return total, count, self.update(gradients, total, unscale, scalars)


class Accumulate(nn.Cell):
    """Adds the gradients of a micro-batch to float32 buffers."""

    def __init__(self, gradients: Gradients, buffers: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.buffers = buffers

    def construct(self, input_ids: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sum of token losses, number of tokens."""
        total, count, gradients = self.gradients(input_ids, labels, scale)
        for i in range(len(self.buffers)):
            gradient = gradients[i].astype(ms.float32)
            total = ops.depend(total, ops.assign_add(self.buffers[i], gradient))
        return total, count


class ApplyBuffers(nn.Cell):
    """Applies the accumulated gradients and clears the buffers."""

    def __init__(self, update: Update, buffers: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.update = update
        self.buffers = buffers

    def construct(self, total: Tensor, unscale: Tensor, *scalars: Tensor) -> Tensor:
        """Returns the gradient norm."""
        gradients = ()
        for buffer in self.buffers:
            gradients += (buffer,)
        norm = self.update(gradients, total, unscale, scalars)
        for buffer in self.buffers:
            norm = ops.depend(norm, ops.assign(buffer, ops.zeros_like(buffer)))
        return norm


class TrainStep:
    """Runs steps and counts them.

    Args:
        model: has `loss_terms`, `set_dropout`, `named_parameters`.
        optimizer: over the weights that are trained.
        max_grad_norm: clip to this global norm; None: never.
        accumulation: micro-batches per step.
        seed: of the dropout masks.
        reduce: sums a tensor over the data-parallel ranks; None for one rank.
        squared_norm: see Update.
        one_target: a row has one trained position (its class) and not up to S.

    Attributes:
        steps: steps that were run; the next one has this number.
        updates: those of them that changed the weights.
    """

    def __init__(
        self,
        model: Network,
        optimizer: Optimizer,
        *,
        max_grad_norm: float | None = 1.0,
        accumulation: int = 1,
        seed: int = 0,
        reduce: nn.Cell | None = None,
        squared_norm: nn.Cell | None = None,
        one_target: bool = False,
    ) -> None:
        self.model, self.optimizer, self.one_target = model, optimizer, one_target
        self.accumulation, self.seed = accumulation, seed
        self.steps = self.updates = 0
        gradients = Gradients(model, optimizer.parameters, reduce)
        update = Update(optimizer, max_grad_norm, squared_norm)
        if accumulation == 1:
            self._fused = FusedStep(gradients, update)
        else:
            buffers = _buffers(optimizer.parameters)
            self._accumulate = Accumulate(gradients, buffers)
            self._apply = ApplyBuffers(update, buffers)

    def __call__(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_scale: float = 1.0
    ) -> StepResult:
        """Trains on `accumulation` micro-batches of one shape."""
        assert len(micro_batches) == self.accumulation, "number of micro-batches"
        if not self.model.training:
            self.model.set_train(True)
        scalars = self.optimizer.scalars(learning_rate, self.updates + 1)
        # Divided by the positions of the step, whatever part of them is trained: with float16 the
        # scaled gradients then have the size of a mean's. Exact, for a power of two.
        ids = micro_batches[0][0]
        scale = loss_scale / (len(micro_batches) * (len(ids) if self.one_target else ids.size))
        total, count, norm = (self._whole if self.accumulation == 1 else self._in_parts)(
            micro_batches, scale, scalars
        )
        skipped = not math.isfinite(norm + total)
        self.steps += 1
        self.updates += not skipped
        return StepResult(total / max(count, 1.0), norm, int(count), skipped)

    def _whole(
        self, micro_batches: Sequence[MicroBatch], scale: float, scalars: tuple[Tensor, ...]
    ) -> tuple[float, float, float]:
        input_ids, labels = self._inputs(micro_batches[0], 0)
        found = self._fused(input_ids, labels, _scalar(scale), *scalars)
        return tuple(float(value.asnumpy()) for value in found)  # type: ignore[return-value]

    def _in_parts(
        self, micro_batches: Sequence[MicroBatch], scale: float, scalars: tuple[Tensor, ...]
    ) -> tuple[float, float, float]:
        total = count = 0.0
        factor = _scalar(scale)
        for number, batch in enumerate(micro_batches):
            found = self._accumulate(*self._inputs(batch, number), factor)
            total += float(found[0].asnumpy())
            count += float(found[1].asnumpy())
        unscale = 1.0 / (scale * max(count, 1.0))
        norm = self._apply(_scalar(total), _scalar(unscale), *scalars)
        return total, count, float(norm.asnumpy())

    def _inputs(self, batch: MicroBatch, number: int) -> tuple[Tensor, Tensor]:
        """Tensors of a micro-batch; chooses its dropout masks."""
        self.model.set_dropout(self.seed, self.steps * self.accumulation + number)
        return Tensor(batch[0]), Tensor(batch[1])


def trained_parameters(model: Network) -> list[Parameter]:
    """The weights that the optimizer may change."""
    return [p for p in model.named_parameters().values() if p.requires_grad]


def _buffers(parameters: Sequence[Parameter]) -> ParameterTuple:
    return ParameterTuple(
        [
            Parameter(
                Tensor(np.zeros(p.shape, np.float32)),
                name=f"gradient.{p.name}",
                requires_grad=False,
            )
            for p in parameters
        ]
    )


def _scalar(value: float) -> Tensor:
    return Tensor(np.float32(value))
