import random

from lm_core.config.training import ScaleSense
from lm_core.train.loss_scale import LossScale


def reference(overflows: list[bool], value: float, factor: float, window: int) -> list[float]:
    """DynamicLossScaleUpdateCell, as its source states it: counters instead of a row of steps."""
    last, found = 0, []
    for current, overflow in enumerate(overflows, 1):
        if overflow:
            value, last = max(value / factor, 1.0), current
        elif current - last >= window:
            value, last = value * factor, current
        found.append(value)
    return found


def test_dynamic_rule():
    choose = random.Random(3)
    for window in (1, 2, 5, 50):
        overflows = [choose.random() < 0.2 for _ in range(300)]
        scale = LossScale(8.0, dynamic=True, factor=2.0, window=window)
        seen = []
        for overflow in overflows:
            scale.update(overflow)
            seen.append(scale.value)
        assert seen == reference(overflows, 8.0, 2.0, window)
    assert min(seen) == 1.0  # the last window is so long that the scale fell all the way


def test_fixed_never_changes():
    scale = LossScale(128.0)
    for overflow in (True, False) * 5:
        scale.update(overflow)
    assert scale.value == 128.0
    assert scale.in_use
    assert not LossScale().in_use


def test_state_goes_on_exactly():
    overflows = [i % 7 == 3 for i in range(40)]
    whole = LossScale(64.0, dynamic=True, window=4)
    for overflow in overflows:
        whole.update(overflow)
    first = LossScale(64.0, dynamic=True, window=4)
    for overflow in overflows[:17]:
        first.update(overflow)
    second = LossScale(1.0, dynamic=True, window=4)
    second.load_state(first.state())
    for overflow in overflows[17:]:
        second.update(overflow)
    assert (second.value, second.good_steps) == (whole.value, whole.good_steps)


def test_a_scale_of_one_cannot_fall():
    scale = LossScale(2.0, dynamic=True)
    assert not scale.exhausted
    scale.update(True)
    assert scale.exhausted
    assert LossScale(1.0).exhausted
    assert not LossScale(1024.0).exhausted  # MindSpore skips such a step and goes on


def test_of_a_run():
    scale = LossScale.from_config(ScaleSense(type="DynamicLossScaleUpdateCell", scale_window=7))
    assert (scale.value, scale.dynamic, scale.window) == (65536.0, True, 7)
    assert not LossScale.from_config(ScaleSense(type="fixed", loss_scale_value=4.0)).dynamic
