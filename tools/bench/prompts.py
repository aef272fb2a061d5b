"""What all contenders are given, and that they answer alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from driver import ContenderError
from models import MODELS

_ALIKE = 4
"""Tokens of a row that all must agree on, but for near ties: with random weights one of eight rows
has one (less than the rounding of float32) within so many."""
_TIES = 8


def random_rows(model: str, batch: int, length: int, seed: int = 2) -> list[list[int]]:
    """Ids of a model, [B][S]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, MODELS[model].vocabulary, (batch, length)).tolist()


def check_agreement(answers: dict[str, dict[str, Any]]) -> None:
    """The first tokens are the same, but for one row in eight."""
    first = {name: [row[:_ALIKE] for row in answer["tokens"]] for name, answer in answers.items()}
    rows = [{tuple(row) for row in theirs} for theirs in zip(*first.values(), strict=True)]
    if sum(len(row) > 1 for row in rows) > len(rows) // _TIES:
        raise ContenderError(f"the contenders compute different tokens: {first}")
