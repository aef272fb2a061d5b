"""Records and a tokenizer that are made here."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.data.mindrecord import RecordWriter
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe

END = "<|endoftext|>"


@pytest.fixture(scope="session")
def tokenizer():
    text = "The lobster , the water and the old cook . It 's cold ; isn 't it ? @-@ \n" * 20
    return ByteLevelBpe(*train_bpe([text], 300), eos_token=END, pad_token=END)


def write_records(path, rows, length=5, splits=1, start=0, columns=("input_ids",)):
    """Record k holds the id start + k everywhere."""
    with RecordWriter(path, columns, splits) as writer:
        for k in range(start, start + rows):
            writer.write({name: np.full(length, k, np.int32) for name in columns})
    return path


@pytest.fixture
def records():
    return write_records
