"""Loss and perplexity of a whole data set, every token counting alike."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Perplexity:
    """Adds up sums of token losses; the mean does not depend on how tokens were batched.

    (MindFormers averages the means of batches, which weighs tokens of short batches more.)
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.tokens = 0

    def update(self, loss_sum: float, tokens: float) -> None:
        """Adds a batch: the sum of its token losses and their number."""
        self.total += loss_sum
        self.tokens += round(tokens)

    @property
    def sums(self) -> tuple[float, ...]:
        """What parts of a data set add up to, for several processes."""
        return self.total, self.tokens

    @sums.setter
    def sums(self, values: Sequence[float]) -> None:
        self.total, self.tokens = values[0], round(values[1])

    def result(self) -> dict[str, float]:
        """The mean loss in nats and its exponential: `{"loss": ..., "PPL": ...}`."""
        loss = self.total / self.tokens if self.tokens else math.nan
        # exp overflows above 709.
        return {"loss": loss, "PPL": math.exp(loss) if loss < 709.0 else math.inf}
