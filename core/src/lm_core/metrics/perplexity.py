"""Loss and perplexity of a whole data set, every token counting alike."""

from __future__ import annotations

import math


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

    def result(self) -> dict[str, float]:
        """The mean loss in nats and its exponential: `{"loss": ..., "PPL": ...}`."""
        loss = self.total / self.tokens if self.tokens else math.nan
        # exp overflows above 709.
        return {"loss": loss, "PPL": math.exp(loss) if loss < 709.0 else math.inf}
