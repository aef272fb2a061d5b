"""The least loss is the answer."""

from __future__ import annotations

import math

import numpy as np

from lm_core.metrics.prompt_accuracy import PromptAccuracy

LOSSES = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0], [0.5, 0.7, np.nan], [4.0, 3.0, np.inf]])


def test_the_least_counts_of_equal_ones_the_first_and_nothing_that_is_no_number():
    for labels, right in (([1, 0, 0, 1], 2), ([1, 1, 0, 1], 1), ([0, 2, 2, 2], 0)):
        metric = PromptAccuracy()
        metric.update(LOSSES, np.array(labels))
        assert metric.result() == {
            "accuracy": right / 4, "total_acc_num": right, "total_num": 4,
        }  # fmt: skip


def test_batches_and_ranks_add_up():
    labels = np.array([1, 0, 1, 0])
    whole, parts = PromptAccuracy(), [PromptAccuracy(), PromptAccuracy()]
    whole.update(LOSSES, labels)
    for part, rows in zip(parts, (slice(0, 3), slice(3, 4)), strict=True):
        part.update(LOSSES[rows], labels[rows])
    parts[0].sums = [sum(values) for values in zip(*(part.sums for part in parts), strict=True)]
    assert parts[0].result() == whole.result()
    assert isinstance(parts[0].result()["total_num"], int)
    assert math.isnan(PromptAccuracy().result()["accuracy"])
    empty = PromptAccuracy()
    empty.update(np.zeros((0, 3)), np.zeros(0, np.int32))
    assert empty.sums == (0, 0)
