"""Means of scores over texts that come in any order, some of them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Means:
    """Means over texts; every text counts, also one of which nothing was written.

    (MindFormers leaves those out of the mean of ADGENMetric.)
    """

    def __init__(self, names: Sequence[str]) -> None:
        """`names` of the scores."""
        self.names = names
        self._found: dict[int, Mapping[str, float]] = {}

    def update(self, number: int, scores: Mapping[str, float]) -> None:
        """Adds the text of a number; a second one of that number replaces it."""
        self._found[number] = scores

    def result(self) -> dict[str, float]:
        """The means, which do not depend on the order in which texts came."""
        rows = [self._found[number] for number in sorted(self._found)]
        return {name: sum(row[name] for row in rows) / max(len(rows), 1) for name in self.names}
