"""One update of the weights as one compiled graph.

Forward, loss, backward, sum over data-parallel ranks, global norm, clipping, unscaling and the
update rule compile together; without gradient accumulation no gradient is ever stored between
calls. With it there are two graphs: one adds the gradients of a micro-batch to buffers, the other
sums these over the ranks and applies them.

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

from lm_core.train.optimizer import zeros
from lm_core.train.reduction import Reduction, SquaredNorm, counted_shares

if TYPE_CHECKING:
    from lm_core.nn.network import Network
    from lm_core.train.optimizer import Optimizer

MicroBatch = tuple[np.ndarray, np.ndarray]
"""input_ids and labels, int32 [B, S]; labels[b, t] follows input_ids[b, t], -100 is not trained.
Of records with several documents the inputs are [B, 3, S]; see `lm_core.nn.network.Network`."""


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
    """

    def __init__(self, model: Network, weights: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
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
        return total, count, gradients


class Update(nn.Cell):
    """Unscales and clips gradients and applies them, unless one or the loss is not finite.

    Args:
        optimizer: the update rule.
        max_grad_norm: gradients are scaled down to this global norm; None: never.
        squared_norm: of all gradients of the model, wherever they are.
    """

    def __init__(
        self, optimizer: Optimizer, max_grad_norm: float | None, squared_norm: nn.Cell
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.squared_norm = squared_norm

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

    def __init__(self, gradients: Gradients, reduction: Reduction, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.reduction = reduction
        self.update = update

    def construct(
        self, input_ids: Tensor, labels: Tensor, scale: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sum of token losses, number of tokens, gradient norm."""
        total, count, gradients = self.gradients(input_ids, labels, scale)
        total, count, gradients = self.reduction(total, count, gradients)
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
        return added(total, self.buffers, gradients), count


class ApplyBuffers(nn.Cell):
    """Applies the accumulated gradients and clears the buffers."""

    def __init__(self, reduction: Reduction, update: Update, buffers: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.reduction = reduction
        self.update = update
        self.buffers = buffers

    def construct(
        self, total: Tensor, count: Tensor, scale: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sum of token losses, number of tokens, gradient norm, of all ranks."""
        gradients = ()
        for buffer in self.buffers:
            gradients += (buffer,)
        total, count, gradients = self.reduction(total, count, gradients)
        unscale = 1.0 / (scale * ops.maximum(count, 1.0))
        norm = self.update(gradients, total, unscale, scalars)
        for buffer in self.buffers:
            norm = ops.depend(norm, ops.assign(buffer, ops.zeros_like(buffer)))
        return total, count, norm


def added(value: Tensor, buffers: ParameterTuple, gradients: tuple[Tensor, ...]) -> Tensor:
    """`value`, when the gradients have been added to the buffers; inside a graph."""
    for i in range(len(buffers)):
        value = ops.depend(value, ops.assign_add(buffers[i], gradients[i].astype(ms.float32)))
    return value


class TrainStep:
    """Runs steps and counts them.

    Args:
        model: has `loss_terms`, `set_dropout`, `named_parameters`.
        optimizer: over the weights that are trained.
        max_grad_norm: clip to this global norm; None: never.
        accumulation: micro-batches of this rank per step.
        seed: of the dropout masks.
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
        one_target: bool = False,
    ) -> None:
        self.model, self.optimizer, self.one_target = model, optimizer, one_target
        self.accumulation, self.seed = accumulation, seed
        self.steps = self.updates = 0
        self._build(max_grad_norm)

    def _build(self, max_grad_norm: float | None) -> None:
        """Makes the graphs."""
        weights, context = self.optimizer.parameters, self.model.context
        gradients = Gradients(self.model, weights)
        reduction = Reduction(self.model, weights)
        squared_norm = SquaredNorm(context, counted_shares(self.model, weights))
        update = Update(self.optimizer, max_grad_norm, squared_norm)
        if self.accumulation == 1:
            self._fused = FusedStep(gradients, reduction, update)
        else:
            buffers = zeros("gradient", weights)
            self._accumulate = Accumulate(gradients, buffers)
            self._apply = ApplyBuffers(reduction, update, buffers)

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
        positions = len(ids) if self.one_target else ids.size
        ranks = self.model.context.data_parallel
        scale = loss_scale / (ranks * len(micro_batches) * positions)
        total, count, norm = self._run(micro_batches, scale, scalars)
        skipped = not math.isfinite(norm + total)
        self.steps += 1
        self.updates += not skipped
        return StepResult(total / max(count, 1.0), norm, int(count), skipped)

    def _run(
        self, micro_batches: Sequence[MicroBatch], scale: float, scalars: tuple[Tensor, ...]
    ) -> tuple[float, ...]:
        """Sum of token losses, number of tokens, gradient norm."""
        factor = scalar(scale)
        if self.accumulation == 1:
            return numbers(self._fused(*self._inputs(micro_batches[0], 0), factor, *scalars))
        total, count = self._gradients(micro_batches, factor)
        return numbers(self._apply(scalar(total), scalar(count), factor, *scalars))

    def _gradients(self, micro_batches: Sequence[MicroBatch], scale: Tensor) -> tuple[float, float]:
        """Adds the gradients of all micro-batches to the buffers. Returns sum and number."""
        total = count = 0.0
        for number, batch in enumerate(micro_batches):
            found = numbers(self._accumulate(*self._inputs(batch, number), scale))
            total, count = total + found[0], count + found[1]
        return total, count

    def _inputs(self, batch: MicroBatch, number: int) -> tuple[Tensor, Tensor]:
        """Tensors of a micro-batch; chooses its dropout masks."""
        self.choose_masks(batch, number)
        return Tensor(batch[0]), Tensor(batch[1])

    def choose_masks(self, batch: MicroBatch, number: int) -> None:
        """Masks follow from the place of a record in the batch of all ranks."""
        rows, length = batch[1].shape
        first = (self.model.context.dp_rank * self.accumulation + number) * rows
        self.model.set_dropout(self.seed, self.steps, first * length)


def trained_parameters(model: Network) -> list[Parameter]:
    """The weights that the optimizer may change."""
    return [p for p in model.named_parameters().values() if p.requires_grad]


def scalar(value: float) -> Tensor:
    """A float32 scalar."""
    return Tensor(np.float32(value))


def numbers(found: Sequence[Tensor]) -> tuple[float, ...]:
    """Scalars on the host."""
    return tuple(float(value.asnumpy()) for value in found)
