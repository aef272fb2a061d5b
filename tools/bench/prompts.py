"""What all contenders are given, and that they answer alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from driver import ContenderError
from models import MODELS

_ALIKE = 4
"""Tokens of a row that all must agree on. Of eight rows of random weights, one has a near tie (less
than the rounding of float32) within eight."""


def random_rows(model: str, batch: int, length: int, seed: int = 2) -> list[list[int]]:
    """Ids of a model, [B][S]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, MODELS[model].vocabulary, (batch, length)).tolist()


def check_agreement(answers: dict[str, dict[str, Any]]) -> None:
    """The first tokens of all rows are the same; later ones may part at a near tie."""
    first = {name: [row[:_ALIKE] for row in answer["tokens"]] for name, answer in answers.items()}
    if len({str(rows) for rows in first.values()}) > 1:
        raise ContenderError(f"the contenders compute different tokens: {first}")
