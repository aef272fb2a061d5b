"""What several test files of this package train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from lm_core.data.mindrecord import RecordWriter

VOCABULARY, LENGTH, RECORDS = 61, 16, 22
SIZES = {
    "preset": "gpt2_tiny", "vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 1,
    "num_heads": 2, "seq_length": LENGTH, "embedding_dropout_prob": 0.1,
    "hidden_dropout_rate": 0.1, "attention_dropout_rate": 0.1, "eos_token_id": 0,
    "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def sizes() -> Mapping[str, Any]:
    """`model_config` of a model that trains in seconds."""
    return MappingProxyType(SIZES)


@pytest.fixture(scope="session")
def change() -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Sets keys of a run, in place; `__` stands for the dot between sections."""

    def changed(run: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        for key, value in changes.items():
            section = run
            *path, last = key.split("__")
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        return run

    return changed


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Path]:
    """Records with masks of unequal lengths, so tokens and records weigh differently."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", RECORDS), ("held_out", 13)):
        # Each token is the one before plus 1 or 2: there is something to learn.
        steps = rng.integers(1, 3, (count, LENGTH + 1))
        ids = (1 + (rng.integers(0, 60, (count, 1)) + steps.cumsum(1)) % 60).astype(np.int32)
        mask = (np.arange(LENGTH + 1) < rng.integers(4, LENGTH + 2, (count, 1))).astype(np.int32)
        files[name] = folder / f"{name}.mindrecord"
        with RecordWriter(files[name], ("input_ids", "attention_mask")) as writer:
            for row, real in zip(ids, mask, strict=True):
                writer.write({"input_ids": row, "attention_mask": real})
    return files
