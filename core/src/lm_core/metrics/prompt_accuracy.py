"""Share of texts whose true prompt makes them most likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PromptAccuracy:
    """Adds up records; every record counts alike, however they were batched."""

    def __init__(self) -> None:
        self.correct = self.total = 0

    def update(self, losses: np.ndarray, labels: np.ndarray) -> None:
        """Adds a batch.

        Args:
            losses: mean loss of the scored tokens behind each prompt, [B, C]. The least is the
                answer, of equal ones the first; where one is no number there is no answer.
            labels: which of them has the true label, [B].
        """
        answered = np.isfinite(losses).all(axis=1)
        self.correct += int((answered & (losses.argmin(axis=1) == labels)).sum())
        self.total += len(labels)

    @property
    def sums(self) -> tuple[float, ...]:
        """What parts of a data set add up to, for several processes."""
        return self.correct, self.total

    @sums.setter
    def sums(self, values: Sequence[float]) -> None:
        self.correct, self.total = round(values[0]), round(values[1])

    def result(self) -> dict[str, float]:
        """The share that is right, and its parts, as the model card names them."""
        return {
            "accuracy": self.correct / (self.total or float("nan")),
            "total_acc_num": self.correct,
            "total_num": self.total,
        }
