"""Share of texts whose class is found, and their mean loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Accuracy:
    """Adds up rows; every row counts alike, however they were batched."""

    def __init__(self) -> None:
        self.total = 0.0
        self.correct = self.rows = 0

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Adds a batch: logits [B, C], and the classes [B]. Of equal logits the first counts."""
        wide = logits.astype(np.float64)
        top = wide.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
        self.total += float((normaliser - wide[np.arange(len(wide)), labels]).sum())
        self.correct += int((wide.argmax(axis=1) == labels).sum())
        self.rows += len(labels)

    @property
    def sums(self) -> tuple[float, ...]:
        """What parts of a data set add up to, for several processes."""
        return self.total, self.correct, self.rows

    @sums.setter
    def sums(self, values: Sequence[float]) -> None:
        self.total, self.correct, self.rows = values[0], round(values[1]), round(values[2])

    def result(self) -> dict[str, float]:
        """The mean loss in nats and the share that is right: `{"loss": ..., "accuracy": ...}`."""
        rows = self.rows or float("nan")
        return {"loss": self.total / rows, "accuracy": self.correct / rows}
