"""What attention takes if it does not go block by block.

Its probabilities are N squares of S numbers. A forward pass holds two such (scores and
probabilities of one block of the network), and the causal mask of every block, a constant; training
keeps probabilities for each block, works in two more, and has the masks twice. Processes of 8,192
tokens grew by 1.04 times that.
"""

from __future__ import annotations

from weights import Model

WITHOUT = "lm, without blocks"
MOST = 12e9
"""Bytes; what would take more is not run."""


def bytes_without(model: Model, length: int, trains: bool) -> float:
    """What a pass or a training step over one sequence takes at its fullest, about."""
    square = 4.0 * length**2
    copies = 2 + model.layers if trains else 2
    masks = 2 * model.layers if trains else model.layers
    return square * (model.heads * copies + masks)
