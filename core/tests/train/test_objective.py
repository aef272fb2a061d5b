"""Records that a model cannot learn from are refused before anything is built."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.config.data import DataLoader, DatasetConfig
from lm_core.config.model import ModelConfig
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.packing import Document, joined
from lm_core.train.objective import objective

SIZES = {"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "seq_length": 9}


@pytest.fixture
def packed(tmp_path):
    """Two documents in each record."""
    document = Document(np.arange(1, 5, dtype=np.int32), np.arange(1, 5, dtype=np.int32))
    path = tmp_path / "x.mindrecord"
    with RecordWriter(path, ("input_ids", "labels", "segment_ids")) as writer:
        writer.write(joined([document, document], 10, 0))
    return path


@pytest.mark.parametrize("columns", [None, ["input_ids", "labels"]])
def test_documents_of_a_record_stay_apart_whether_the_column_is_named_or_not(packed, columns):
    section = DatasetConfig(data_loader=DataLoader(dataset_dir=str(packed)), input_columns=columns)
    task = objective(ModelConfig(**SIZES))
    records = task.open(section)
    task.check(records, training=True)
    inputs, labels = task.prepare(records.read([0]))
    assert inputs[:, 0].tolist() == [[1, 2, 3, 4, 1, 2, 3, 4, 0]]
    assert labels.tolist() == [[2, 3, 4, -100, 2, 3, 4, -100, -100]]
    assert inputs[:, 2].tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 0]]
