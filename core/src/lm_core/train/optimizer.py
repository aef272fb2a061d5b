"""Update rules as Cells inside the compiled step. State is float32 whatever the weights are.

AdamW (Loshchilov and Hutter 2019) runs on MindSpore's fused `AdamWeightDecay`, which updates a
weight and its two moments in place in one pass over memory. The operator itself has no bias
correction: its rule is

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p = p - a (m / (sqrt(v) + e) + w p).

With c1 = 1 - b1^t, c2 = sqrt(1 - b2^t), and a = lr c2 / c1, e = eps c2, w = decay c1 / c2, this is

    p - lr ((m / c1) / (sqrt(v) / c2 + eps) + decay p),

exactly AdamW with bias correction. The three scalars are computed on the host in float64 (in
float32, 1 - 0.999^t has an error of 6e-5 at t = 1) and are inputs of the graph, so no step is
compiled twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.training import OptimizerConfig


def decays(parameter: Parameter) -> bool:
    """Weight decay is for matrices: not for biases and the gains of norms."""
    return len(parameter.shape) > 1


class Optimizer(nn.Cell):
    """What the training step asks of an update rule.

    Attributes:
        parameters: the weights that it changes.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        """Inputs of `construct` for one update; `update` counts the applied ones from 1."""
        raise NotImplementedError

    def state(self) -> dict[str, Parameter]:
        """The float32 state by name, for checkpoints."""
        raise NotImplementedError

    construct: Callable[..., Tensor]
    """`construct(gradients, factor, *scalars)`: one update with the gradients times `factor`."""


class AdamW(Optimizer):
    """AdamW with decoupled weight decay.

    Args:
        parameters: the weights.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of the parameters for which `decays` holds.
        bias_correction: False gives the rule of MindSpore's AdamWeightDecay (and so of
            FP32StateAdamWeightDecay and FusedAdamWeightDecay), whose first updates are smaller.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(parameters)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.bias_correction = bias_correction
        self.first = zeros("adam.m", parameters)
        self.second = zeros("adam.v", parameters)
        self.decayed = tuple(weight_decay > 0.0 and decays(p) for p in parameters)
        self.fused = tuple(p.dtype == ms.float32 for p in parameters)
        self.fused_rule = ops.AdamWeightDecay()

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        c1 = 1.0 - self.beta1**update if self.bias_correction else 1.0
        c2 = math.sqrt(1.0 - self.beta2**update) if self.bias_correction else 1.0
        values = (learning_rate * c2 / c1, self.eps * c2, self.weight_decay * c1 / c2)
        return tuple(Tensor(np.float32(value)) for value in values)

    def state(self) -> dict[str, Parameter]:
        return {p.name: p for p in (*self.first, *self.second)}

    def construct(
        self,
        gradients: tuple[Tensor, ...],
        factor: Tensor,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor,
    ) -> Tensor:
        done = factor
        for i in range(len(self.parameters)):
            gradient = gradients[i].astype(ms.float32) * factor
            if self.fused[i]:
                changed = self.fused_rule(
                    self.parameters[i],
                    self.first[i],
                    self.second[i],
                    rate,
                    self.beta1,
                    self.beta2,
                    eps,
                    decay if self.decayed[i] else 0.0,
                    gradient,
                )
            else:
                changed = self.composed(i, gradient, rate, eps, decay if self.decayed[i] else 0.0)
            done = ops.depend(done, changed)
        return done

    def composed(
        self, i: int, gradient: Tensor, rate: Tensor, eps: Tensor, decay: Tensor | float
    ) -> Tensor:
        """The same rule from plain operators, for weights that are not float32."""
        weight = self.parameters[i].astype(ms.float32)
        m = self.first[i] * self.beta1 + gradient * (1.0 - self.beta1)
        v = self.second[i] * self.beta2 + gradient * gradient * (1.0 - self.beta2)
        weight = weight - rate * (m / (ops.sqrt(v) + eps) + decay * weight)
        changed = ops.assign(self.parameters[i], weight.astype(self.parameters[i].dtype))
        return ops.depend(changed, (ops.assign(self.first[i], m), ops.assign(self.second[i], v)))


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's or plain, and L2 decay.

    With g = gradient + decay p: b = momentum b + g, p = p - lr (g + momentum b if nesterov else b)
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters)
        if nesterov and not momentum:
            raise ConfigError("optimizer.nesterov: needs momentum; set optimizer.momentum: 0.9")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.buffers = zeros("sgd.momentum", parameters) if momentum else None
        self.decayed = tuple(weight_decay > 0.0 and decays(p) for p in parameters)

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        return (Tensor(np.float32(learning_rate)),)

    def state(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.buffers or ()}

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor, rate: Tensor) -> Tensor:
        done = factor
        for i in range(len(self.parameters)):
            weight = self.parameters[i].astype(ms.float32)
            step = gradients[i].astype(ms.float32) * factor
            if self.decayed[i]:
                step = step + weight * self.weight_decay
            if self.momentum:
                kept = self.buffers[i] * self.momentum + step
                done = ops.depend(done, ops.assign(self.buffers[i], kept))
                step = step + kept * self.momentum if self.nesterov else kept
            weight = (weight - step * rate).astype(self.parameters[i].dtype)
            done = ops.depend(done, ops.assign(self.parameters[i], weight))
        return done


def from_config(section: OptimizerConfig, parameters: Sequence[Parameter]) -> Optimizer:
    """The update rule of a run."""
    if section.type == "sgd":
        return Sgd(
            parameters,
            momentum=section.momentum,
            nesterov=section.nesterov,
            weight_decay=section.weight_decay,
        )
    return AdamW(
        parameters,
        beta1=section.beta1,
        beta2=section.beta2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        bias_correction=section.bias_correction,
    )


def zeros(prefix: str, parameters: Sequence[Parameter]) -> ParameterTuple:
    """float32 zeros of the same shapes, named `prefix.NAME`."""
    return ParameterTuple(
        [
            Parameter(
                Tensor(np.zeros(p.shape, np.float32)),
                name=f"{prefix}.{p.name}",
                requires_grad=False,
            )
            for p in parameters
        ]
    )
