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
    """First tokens are the same in all rows, and the next ones in seven of eight."""
    first = {name: [row[:_ALIKE] for row in answer["tokens"]] for name, answer in answers.items()}
    rows = [{tuple(row) for row in theirs} for theirs in zip(*first.values(), strict=True)]
    parted = [row for row in rows if len(row) > 1]
    different = any(len({tokens[0] for tokens in row}) > 1 for row in rows)
    if different or len(parted) > len(rows) // _TIES:
        raise ContenderError(f"the contenders compute different tokens: {first}")
