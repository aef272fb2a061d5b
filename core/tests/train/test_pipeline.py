"""The order of what the stages of a pipeline do."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from lm_core.train.pipeline import schedule

CASES = list(product(range(2, 7), range(1, 13)))
MEETINGS = {
    "send output": ("receive input", 1),
    "receive input": ("send output", -1),
    "send gradient": ("receive gradient", -1),
    "receive gradient": ("send gradient", 1),
}
"""Whom a stage waits for, and what that one must be at."""


@pytest.mark.parametrize(("stages", "batches"), CASES)
def test_nobody_waits_for_ever(stages, batches):
    """Messages are meetings: both sides must be at the same one."""
    left = [list(schedule(stage, stages, batches)) for stage in range(stages)]
    while any(left):
        moved = False
        for stage, events in enumerate(left):
            while events and events[0][0] not in MEETINGS:
                events.pop(0)
                moved = True
            if not events:
                continue
            event, number = events[0]
            partner, side = MEETINGS[event]
            if left[stage + side][:1] == [(partner, number)]:
                events.pop(0)
                left[stage + side].pop(0)
                moved = True
        assert moved, [events[:1] for events in left]


@pytest.mark.parametrize(("stages", "batches"), CASES)
def test_every_stage_does_everything_once_and_in_order(stages, batches):
    for stage in range(stages):
        events = list(schedule(stage, stages, batches))
        kinds = ["forward", "backward"]
        kinds += ["receive input", "send gradient"] if stage else []
        kinds += ["send output", "receive gradient"] if stage < stages - 1 else []
        assert sorted(events) == sorted(product(kinds, range(batches)))
        order = ["receive input", "forward", "send output", "receive gradient", "backward",
                 "send gradient"]  # fmt: skip
        for number in range(batches):
            places = [events.index((kind, number)) for kind in order if kind in kinds]
            assert all(a < b for a, b in pairwise(places))


@pytest.mark.parametrize(("stages", "batches"), CASES)
def test_inputs_in_flight_are_as_many_as_stages_to_come(stages, batches):
    """1F1B: memory does not grow with the number of micro-batches."""
    for stage in range(stages):
        held = most = 0
        for kind, _ in schedule(stage, stages, batches):
            held += (kind == "forward") - (kind == "backward")
            most = max(most, held)
        assert held == 0
        assert most == min(batches, stages - stage)
