"""What attention would take if it did not go block by block.

Its probabilities are N squares of S numbers. A forward pass holds three copies of those of one
block of the network (scores, the same with the mask, probabilities); training keeps one for each
block and works in three. Each block also has its causal mask, a constant, twice.
"""

from __future__ import annotations

from weights import Model

WITHOUT = "lm, without blocks"
MOST = 12e9
"""Bytes; what would take more is not run."""


def bytes_without(model: Model, length: int, trains: bool) -> float:
    """What a pass or a training step over one sequence takes at its fullest, about."""
    square = 4.0 * length**2
    copies = 3 + (model.layers if trains else 0)
    return square * (model.heads * copies + 2 * model.layers)
