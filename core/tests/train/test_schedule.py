import math

import pytest

from lm_core.config.training import LrSchedule
from lm_core.errors import ConfigError
from lm_core.train.schedule import Schedule, from_config

N, W, PEAK, END, INIT = 200, 20, 3e-4, 1e-5, 1e-6
KINDS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")


def make(kind: str, **changes) -> Schedule:
    values = {"learning_rate": PEAK, "total_steps": N, "warmup_steps": W, "lr_end": END, **changes}
    return Schedule(kind=kind, **values)


def expected(kind: str, s: int) -> float:
    """The textbook formulas, written out once more."""
    p = (s - W) / (N - W)
    return {
        "constant": PEAK,
        "linear": END + (PEAK - END) * (N - s) / (N - W),
        "cosine": END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * p)),
        "cosine_with_restarts": END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * ((3 * p) % 1))),
        "polynomial": END + (PEAK - END) * (1 - p) ** 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_closed_formulas(kind: str):
    extra = {"cosine_with_restarts": {"num_cycles": 3}, "polynomial": {"power": 2.0}}
    schedule = make(kind, **extra.get(kind, {}))
    for s in range(W, N):
        assert schedule(s) == pytest.approx(expected(kind, s), rel=1e-12)
    for s in range(W):
        assert schedule(s) == pytest.approx(PEAK * s / W, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_warm_up_the_first_update_has_the_peak(kind: str):
    assert make(kind, warmup_steps=0)(0) == PEAK


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_rises_from_its_first_value_to_the_peak(kind: str):
    schedule = make(kind, warmup_lr_init=INIT)
    rates = [schedule(s) for s in range(W + 1)]
    assert rates[0] == INIT
    assert rates[-1] == PEAK
    steps = [b - a for a, b in zip(rates, rates[1:], strict=False)]
    assert steps == pytest.approx([(PEAK - INIT) / W] * W, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_past_the_end_it_stays(kind: str):
    schedule = make(kind)
    end = PEAK if kind == "constant" else END
    assert [schedule(s) for s in (N, N + 1, 10 * N)] == pytest.approx([end] * 3)
    assert all(schedule(s) >= min(END, PEAK) for s in range(W, 3 * N))


def test_restarts_come_back_to_the_peak():
    schedule = make("cosine_with_restarts", warmup_steps=0, num_cycles=4, total_steps=100)
    assert [schedule(s) for s in (0, 25, 50, 75)] == [PEAK] * 4
    assert schedule(24) < schedule(12) < PEAK


def test_decay_steps_end_earlier():
    schedule = make("polynomial", warmup_steps=10, decay_steps=30)
    assert schedule(10) == PEAK
    assert schedule(25) == pytest.approx((PEAK + END) / 2)
    assert schedule(40) == schedule(N - 1) == END


def test_one_update_after_the_warm_up_is_enough():
    assert make("linear", total_steps=21)(20) == PEAK
    assert make("linear", total_steps=20)(20) == PEAK  # nothing is left to decay
    assert make("cosine", total_steps=1, warmup_steps=0)(0) == PEAK


def test_of_a_run():
    def of(**values):
        return from_config(LrSchedule(**values), 1e-3, total_steps=300, steps_per_epoch=100)

    assert of(type="CosineWithWarmUpLR", warmup_ratio=0.1).warmup_steps == 30
    assert of(type="cosine").total_steps == 300
    assert of(type="cosine", total_steps=77).total_steps == 77
    assert of(type="linear", warmup_epochs=0.5).warmup_steps == 50
    assert of(type="polynomial", warmup_steps=7, lr_end=1e-4, power=3.0).power == 3.0
    # 0.29 * 300 is 86.99999999999999 in floating point.
    assert of(type="linear", warmup_ratio=0.29).warmup_steps == 87


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="lr_schedule.type: 'step' .* cosine_with_restarts"):
        make("step")
    with pytest.raises(ConfigError, match="lr_schedule.total_steps: 0"):
        make("linear", total_steps=0)
