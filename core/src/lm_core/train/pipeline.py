"""Training in pipeline stages: one forward, one backward (1F1B; Narayanan et al. 2021, 2.2).

The host drives two compiled graphs for each stage. A graph ends with its call, so the backward pass
of a stage computes its forward pass again from the input of the stage, which is all that is kept
for each micro-batch in flight (the last stage does both in one graph and computes nothing twice).

Messages are meetings: whoever sends waits until the other receives. Between two stages they are in
one order on both sides: with w micro-batches of start-up, w activations, then a gradient and an
activation in turn, then the rest of the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from lm_core.nn.network import Network
from lm_core.parallel import backend, collectives
from lm_core.train.optimizer import zeros
from lm_core.train.reduction import Reduction, SquaredNorm, counted_shares
from lm_core.train.step import (
    ApplyBuffers,
    MicroBatch,
    TrainStep,
    Update,
    added,
    numbers,
)

Event = tuple[
    Literal["receive input", "forward", "send output", "receive gradient", "backward",
            "send gradient"],
    int,
]  # fmt: skip
"""What a stage does next, and for which micro-batch."""


def schedule(stage: int, stages: int, micro_batches: int) -> Iterator[Event]:
    """The events of a stage, in order. The last stage computes forward and backward as one."""
    early = min(micro_batches, stages - 1 - stage)
    for number in range(early):
        yield from _forward(stage, number)
        yield "send output", number
    for number in range(micro_batches - early):
        yield from _forward(stage, early + number)
        if stage < stages - 1:
            # In this order the neighbour meets us: it has a gradient before it needs our output.
            yield "receive gradient", number
            yield "send output", early + number
        yield from _backward(stage, number)
    for number in range(micro_batches - early, micro_batches):
        yield "receive gradient", number
        yield from _backward(stage, number)


def _forward(stage: int, number: int) -> Iterator[Event]:
    if stage:
        yield "receive input", number
    yield "forward", number


def _backward(stage: int, number: int) -> Iterator[Event]:
    yield "backward", number
    if stage:
        yield "send gradient", number


class Stage(nn.Cell):
    """What a stage computes, from the inputs or from the output of the stage before it.

    Args:
        model: the part of a model.
    """

    def __init__(self, model: Network) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.is_first = model.context.is_first_stage
        self.kind = backend.DTYPES[model.config.param_init_type]

    def construct(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x: the inputs, or float32 [B * S, H]; inputs: of Network. Returns float32 [B * S, H]."""
        entered = self.model.enter(x) if self.is_first else x.astype(self.kind)
        return self.model.through(entered, inputs).astype(ms.float32)


class _Scaled(nn.Cell):
    """A scalar whose gradient is that of the stage times the gradient of its output."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(auto_prefix=False)
        self.stage = stage

    def construct(self, x: Tensor, inputs: Tensor, d_out: Tensor) -> Tensor:
        return (self.stage(x, inputs) * d_out).sum()


class StageGradients(nn.Cell):
    """Adds the gradients of a micro-batch to the buffers. Returns the gradient of the input."""

    def __init__(self, stage: Stage, weights: ParameterTuple, buffers: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.buffers, self.is_first = buffers, stage.is_first
        position = None if stage.is_first else 0
        self.differentiate = ms.grad(_Scaled(stage), position, weights)

    def construct(self, x: Tensor, inputs: Tensor, d_out: Tensor) -> Tensor:
        """x, inputs: as of Stage; d_out: float32 [B * S, H]."""
        if self.is_first:
            return added(d_out, self.buffers, self.differentiate(x, inputs, d_out))
        d_x, gradients = self.differentiate(x, inputs, d_out)
        return added(d_x, self.buffers, gradients)


class LastStage(nn.Cell):
    """Loss of a micro-batch; adds its gradients to the buffers."""

    def __init__(self, stage: Stage, weights: ParameterTuple, buffers: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.stage, self.buffers = stage, buffers
        self.differentiate = ms.value_and_grad(self.scaled, 0, weights, has_aux=True)

    def scaled(
        self, x: Tensor, inputs: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss to differentiate, and beside it the sum and number of token losses."""
        model = self.stage.model
        total, count = model.loss_at_end(model.leave(self.stage(x, inputs)), labels)
        return total * scale, total, count

    def construct(
        self, x: Tensor, inputs: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sum of token losses, number of tokens, gradient of x."""
        (_, total, count), (d_x, gradients) = self.differentiate(x, inputs, labels, scale)
        return added(total, self.buffers, gradients), count, d_x


class PipelineStep(TrainStep):
    """Training steps of one stage; its micro-batches are those of the pipeline."""

    def _build(self, max_grad_norm: float | None) -> None:
        weights, context = self.optimizer.parameters, self.model.context
        self._weights, self._buffers = weights, zeros("gradient", weights)
        squared_norm = SquaredNorm(context, counted_shares(self.model, weights))
        update = Update(self.optimizer, max_grad_norm, squared_norm)
        self._apply = ApplyBuffers(Reduction(self.model, weights), update, self._buffers)
        self._graphs: _Graphs | None = None

    def _gradients(self, micro_batches: Sequence[MicroBatch], scale: Tensor) -> tuple[float, float]:
        if self._graphs is None:
            self._graphs = _Graphs(self.model, self._weights, self._buffers)
        return _Run(self, self._graphs, micro_batches, scale)()


class _Graphs:
    """The compiled graphs of a stage."""

    def __init__(self, model: Network, weights: ParameterTuple, buffers: ParameterTuple) -> None:
        stage = Stage(model)
        self.forward = stage
        last = model.context.is_last_stage
        self.backward = None if last else StageGradients(stage, weights, buffers)
        self.both = LastStage(stage, weights, buffers) if last else None


class _Run:
    """One step: follows the schedule.

    Args:
        step: chooses dropout masks.
        graphs: of this stage.
        micro_batches: of this rank.
        scale: of the loss.
    """

    def __init__(
        self,
        step: PipelineStep,
        graphs: _Graphs,
        micro_batches: Sequence[MicroBatch],
        scale: Tensor,
    ) -> None:
        self.step, self.graphs = step, graphs
        self.micro_batches, self.scale = micro_batches, scale
        self.context = step.model.context
        rows, length = micro_batches[0][1].shape
        self.shape = (rows * length, step.model.config.hidden_size)
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}
        self.losses: list[tuple[Tensor, Tensor]] = []

    def __call__(self) -> tuple[float, float]:
        """Sum of token losses and number of tokens; zeros on all stages but the last."""
        actions = {
            "receive input": self.receive_input,
            "forward": self.forward,
            "send output": self.send_output,
            "receive gradient": self.receive_gradient,
            "backward": self.backward,
            "send gradient": self.send_gradient,
        }
        context = self.context
        for event, number in schedule(
            context.stage, context.pipeline_stage, len(self.micro_batches)
        ):
            actions[event](number)
        found = np.array([numbers(pair) for pair in self.losses] or [(0.0, 0.0)])
        return float(found[:, 0].sum()), float(found[:, 1].sum())

    def receive_input(self, number: int) -> None:
        """From the stage before."""
        found = collectives.receive(self.context, self.shape, self.context.stage - 1)
        self.inputs[number] = found

    def forward(self, number: int) -> None:
        """Only stages before the last one; that computes both passes at once."""
        if self.context.is_first_stage:
            self.inputs[number] = Tensor(self.micro_batches[number][0])
        if not self.context.is_last_stage:
            self.choose_masks(number)
            inputs = Tensor(self.micro_batches[number][0])
            self.outputs[number] = self.graphs.forward(self.inputs[number], inputs)

    def send_output(self, number: int) -> None:
        """To the stage behind."""
        collectives.send(self.context, self.outputs.pop(number), self.context.stage + 1)

    def receive_gradient(self, number: int) -> None:
        """From the stage behind."""
        found = collectives.receive(self.context, self.shape, self.context.stage + 1)
        self.gradients[number] = found

    def backward(self, number: int) -> None:
        """Adds to the buffers."""
        self.choose_masks(number)
        x, inputs = self.inputs.pop(number), Tensor(self.micro_batches[number][0])
        if self.graphs.both is not None:
            labels = Tensor(self.micro_batches[number][1])
            total, count, d_x = self.graphs.both(x, inputs, labels, self.scale)
            self.losses.append((total, count))
        else:
            assert self.graphs.backward is not None
            d_x = self.graphs.backward(x, inputs, self.gradients.pop(number))
        if not self.context.is_first_stage:
            self.gradients[number] = d_x

    def send_gradient(self, number: int) -> None:
        """To the stage before."""
        collectives.send(self.context, self.gradients.pop(number), self.context.stage - 1)

    def choose_masks(self, number: int) -> None:
        """Those of the forward pass, in both passes."""
        self.step.choose_masks(self.micro_batches[number], number)
