"""`eod_reset`: documents of a record kept apart by the token that ends each."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from lm_core.config.data import DatasetConfig
from lm_core.config.model import ModelConfig
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.packing import SEGMENTS, Ends, document_numbers
from lm_core.data.pipeline import BatchIterator, RecordDataset
from lm_core.errors import ConfigError, DataError
from lm_core.train.batch import causal_batch
from lm_core.train.objective import NextToken

IDS = [[4, 4, 9, 5, 9, 9, 3, 3], [9, 1, 2, 9, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]]
SIZES = {"vocab_size": 10, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "seq_length": 7}


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "a.mindrecord"
    with RecordWriter(found, ("input_ids",)) as writer:
        for ids in IDS:
            writer.write({"input_ids": np.array(ids, np.int32)})
    return found


@pytest.mark.parametrize("pad", [None, 0, 9])
def test_numbers_against_a_loop(pad):
    generator = np.random.default_rng(0)
    for _ in range(300):
        ids = generator.choice([0, 1, 9], generator.integers(1, 9))
        end, found, number = len(ids), [], 1
        while pad is not None and end and ids[end - 1] == pad:
            end -= 1
        if pad == 9 and 0 < end < len(ids):
            end += 1  # the token that ends the last document
        for at, token in enumerate(ids):
            found.append(number if at < end else 0)
            number += token == 9
        assert document_numbers(ids, 9, pad).tolist() == found, (ids, pad)


def test_records_get_a_column(path):
    records = RecordDataset(path, ends=Ends(9, 0))
    assert records.columns == ("input_ids", SEGMENTS)
    found = records.read([1, 0])
    assert found[SEGMENTS].tolist() == [[1, 2, 2, 2, 0, 0, 0, 0], [1, 1, 1, 2, 2, 3, 4, 4]]
    assert found["input_ids"].tolist() == [IDS[1], IDS[0]]
    assert records.row_length == 8
    batches = list(BatchIterator(records, 3, shuffle=False))
    assert batches[0][SEGMENTS].shape == (3, 8)
    assert records.first(1).read([])[SEGMENTS].shape == (0, 8)


def test_a_column_that_is_there_is_kept(tmp_path):
    path = tmp_path / "b.mindrecord"
    with RecordWriter(path, ("input_ids", SEGMENTS)) as writer:
        row = np.array(IDS[0], np.int32)
        writer.write({"input_ids": row, SEGMENTS: np.ones(8, np.int32)})
    records = RecordDataset(path, ends=Ends(9, 0))
    assert records.ends is None
    assert records.read([0])[SEGMENTS].tolist() == [[1] * 8]


def test_positions_begin_anew_and_first_tokens_are_no_targets(path):
    """By hand: after each 9 the place is 0 again; what follows a 9 is not predicted from it."""
    columns = RecordDataset(path, ends=Ends(9, 0)).read([0, 1])
    inputs, targets = causal_batch(columns, pad_token_id=0, eos_token_id=9)
    assert inputs[:, 1].tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 0, 1, 2]]
    assert targets.tolist() == [
        [4, 9, -100, 9, -100, -100, 3], [-100, 2, 9, -100, -100, -100, -100],
    ]  # fmt: skip


def section(path, **values):
    return DatasetConfig.parse({"data_loader": {"dataset_dir": str(path)}, **values})


@pytest.mark.parametrize(
    ("own", "model", "end"),
    [
        ({"eod_token_id": 5}, {"eod_token_id": 9, "eos_token_id": 1}, 5),
        ({}, {"eod_token_id": 9, "eos_token_id": 1}, 9),
        ({}, {"eos_token_id": [1, 2]}, 1),
        ({"eod_token_id": 0}, {"eos_token_id": 1}, 0),
    ],
)
def test_which_token_it_is(path, own, model, end):
    task = NextToken(ModelConfig(**SIZES, **model))
    assert task.open(section(path, eod_reset=True, **own)).ends == Ends(end, None)
    assert task.open(section(path, **own)).ends is None


@pytest.mark.parametrize(("own", "shown"), [({}, "is not set"), ({"eod_token_id": 10}, "is 10")])
def test_no_such_token(path, own, shown):
    with pytest.raises(ConfigError, match=f"eod_token_id: {shown} and eod_reset is True"):
        NextToken(ModelConfig(**SIZES)).open(section(path, eod_reset=True, **own))


def test_records_without_the_token_give_a_warning(path, caplog):
    with caplog.at_level(logging.WARNING, logger="lm_core"):
        task = NextToken(ModelConfig(**SIZES))
        task.open(section(path, eod_reset=True, eod_token_id=9))
        assert not caplog.records
        task.open(section(path, eod_reset=True, eod_token_id=2))
        assert not caplog.records
    path.unlink()
    with RecordWriter(path, ("input_ids",)) as writer:
        writer.write({"input_ids": np.array(IDS[2], np.int32)})
    with caplog.at_level(logging.WARNING, logger="lm_core"):
        task.open(section(path, eod_reset=True, eod_token_id=9))
    assert "do not hold the token 9 that ends documents" in caplog.text


def test_ids_are_needed(tmp_path):
    path = tmp_path / "c.mindrecord"
    with RecordWriter(path, ("labels",)) as writer:
        writer.write({"labels": np.zeros(3, np.int32)})
    with pytest.raises(DataError, match="has no column input_ids"):
        RecordDataset(path, ("input_ids",), ends=Ends(1, None))
