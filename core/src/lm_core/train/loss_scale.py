"""Loss scale: a factor on the loss that keeps small float16 gradients from vanishing.

It lives on the host: the compiled step takes the scale as an input and skips the update when a
gradient overflowed, and the host hears of it with the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_core.config.training import ScaleSense


class LossScale:
    """A fixed scale, or one that falls at every overflow and rises after a row of good steps.

    The rule is that of MindSpore's DynamicLossScaleUpdateCell.

    Args:
        value: the first scale.
        dynamic: whether it changes.
        factor: by which it falls and rises; it never falls below 1.
        window: good steps in a row before it rises.
    """

    def __init__(
        self, value: float = 1.0, *, dynamic: bool = False, factor: float = 2.0, window: int = 1000
    ) -> None:
        self.value, self.dynamic, self.factor, self.window = value, dynamic, factor, window
        self.good_steps = 0

    @classmethod
    def from_config(cls, section: ScaleSense) -> LossScale:
        """The scale of a run."""
        return cls(
            section.loss_scale_value,
            dynamic=section.type == "dynamic",
            factor=section.scale_factor,
            window=section.scale_window,
        )

    @property
    def in_use(self) -> bool:
        """False where the loss is not scaled: an infinite gradient is then no matter of scale."""
        return self.dynamic or self.value != 1.0

    @property
    def exhausted(self) -> bool:
        """True where an overflow cannot be answered with a smaller scale."""
        return not self.in_use or (self.dynamic and self.value <= 1.0)

    def update(self, overflow: bool) -> None:
        """Learns whether the last step overflowed."""
        if not self.dynamic:
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.value = max(1.0, self.value / self.factor)
        elif self.good_steps >= self.window:
            self.value *= self.factor
            self.good_steps = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; a scale that is fixed now stays what it is."""
        if self.dynamic:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
