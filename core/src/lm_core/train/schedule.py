"""Learning rates as pure functions of the update number, in Python floats.

Updates count from 0. Warm-up rises from `warmup_lr_init` at update 0 to the peak at update
`warmup_steps`; without warm-up, update 0 has the peak. Past the last update the rate stays where
the curve ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.training import LrSchedule


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`schedule(update) -> learning rate`.

    Attributes:
        kind: "constant", "linear", "cosine", "cosine_with_restarts" or "polynomial".
        learning_rate: the peak.
        total_steps: updates of the run, warm-up included.
        warmup_steps: updates before the peak.
        warmup_lr_init: rate of update 0 where there is warm-up.
        lr_end: where the curve ends.
        decay_steps: updates from the peak to the end; None: all that are left.
        power: of "polynomial"; 1 is a line.
        num_cycles: waves of the cosine (default 0.5: from the peak to the end once), or number of
            times that "cosine_with_restarts" starts at the peak (default 1).
    """

    kind: str
    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    warmup_lr_init: float = 0.0
    lr_end: float = 0.0
    decay_steps: int | None = None
    power: float = 1.0
    num_cycles: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            raise ConfigError(
                f"lr_schedule.type: {self.kind!r} is no schedule; use one of {', '.join(_SHAPES)}"
            )
        if self.total_steps < 1:
            raise ConfigError(
                f"lr_schedule.total_steps: {self.total_steps} updates; must be at least 1; "
                f"train for longer"
            )

    def __call__(self, update: int) -> float:
        """The rate of one update, which counts from 0."""
        peak = self.learning_rate
        if update < self.warmup_steps:
            rise = (peak - self.warmup_lr_init) * update / self.warmup_steps
            return self.warmup_lr_init + rise
        left = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, (update - self.warmup_steps) / (self.decay_steps or left))
        return self.lr_end + (peak - self.lr_end) * _SHAPES[self.kind](self, done)


def from_config(
    section: LrSchedule, learning_rate: float, total_steps: int, steps_per_epoch: int
) -> Schedule:
    """The schedule of a run.

    Args:
        section: `lr_schedule` of the run.
        learning_rate: the peak.
        total_steps: updates of the run, for `total_steps: -1`.
        steps_per_epoch: updates of an epoch, for `warmup_epochs`.
    """
    total = total_steps if section.total_steps == -1 else section.total_steps
    return Schedule(
        kind=section.type,
        learning_rate=learning_rate,
        total_steps=total,
        warmup_steps=_warmup_steps(section, total, steps_per_epoch),
        warmup_lr_init=section.warmup_lr_init,
        lr_end=section.lr_end,
        decay_steps=section.decay_steps,
        power=section.power,
        num_cycles=section.num_cycles,
    )


def _warmup_steps(section: LrSchedule, total: int, steps_per_epoch: int) -> int:
    # Rounded before it is cut: 0.29 * 100 is 28.999999999999996.
    if section.warmup_ratio:
        return int(round(section.warmup_ratio * total, 6))
    if section.warmup_epochs:
        return int(round(section.warmup_epochs * steps_per_epoch, 6))
    return section.warmup_steps


def _constant(schedule: Schedule, done: float) -> float:
    return 1.0


def _linear(schedule: Schedule, done: float) -> float:
    return 1.0 - done


def _cosine(schedule: Schedule, done: float) -> float:
    cycles = 0.5 if schedule.num_cycles is None else schedule.num_cycles
    return max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * done)))


def _cosine_with_restarts(schedule: Schedule, done: float) -> float:
    if done >= 1.0:
        return 0.0
    cycles = 1.0 if schedule.num_cycles is None else schedule.num_cycles
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (cycles * done % 1.0))))


def _polynomial(schedule: Schedule, done: float) -> float:
    return (1.0 - done) ** schedule.power


_SHAPES: dict[str, Callable[[Schedule, float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
"""The share of (peak - lr_end) that is left when the share `done` of the decay has passed."""
