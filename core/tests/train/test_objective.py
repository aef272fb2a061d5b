"""Records that a model cannot learn from are refused before anything is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from lm_core.config.data import DataLoader, DatasetConfig, MetricConfig
from lm_core.config.model import ModelConfig
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.packing import Document, joined
from lm_core.errors import ConfigError, DataError
from lm_core.train.objective import (
    NextToken,
    PromptChoice,
    TextClass,
    objective,
    prompts_of,
    scoring,
)

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


PROMPTS, ROW = 3, 10


def prompts(path, *changes, labels=(0, 2, 1), columns=("input_ids", "labels", "attention_mask")):
    """Three records of three rows; changes are (record, places of the mask, value)."""
    masks = np.tile(np.arange(ROW) > 4, (3, PROMPTS, 1)).astype(np.int32)
    for record, places, value in changes:
        masks[record][places] = value
    with RecordWriter(path, columns) as writer:
        for mask, label in zip(masks, labels, strict=True):
            ids = np.arange(PROMPTS * ROW, dtype=np.int32) % 9
            row = {"input_ids": ids, "attention_mask": mask.reshape(-1)}
            writer.write({**row, "labels": np.array([label], np.int32)})
    return path


def opened(path, task, columns=None):
    section = DatasetConfig(data_loader=DataLoader(dataset_dir=str(path)), input_columns=columns)
    return task.open(section)


def test_records_of_prompts_say_how_many_they_hold(tmp_path):
    records = prompts(tmp_path / "x.mindrecord")
    for columns in (None, ["labels", "input_ids", "attention_mask"]):
        for config in (ModelConfig(**SIZES), ModelConfig(**SIZES, num_labels=PROMPTS)):
            task = PromptChoice(config)
            found = opened(records, task, columns)
            task.check(found, training=False)
            assert prompts_of(found) == PROMPTS and found.row_length == PROMPTS * ROW


@pytest.mark.parametrize(
    ("settings", "changes", "options", "message"),
    [
        ({"num_labels": 4}, [], {}, "records hold 3 scored texts each; num_labels 4 must be the"),
        ({"seq_length": 8}, [], {}, "rows hold 10 ids; must be at most 9, seq_length and"),
        ({}, [], {"labels": (0, 3, 1)}, "record 1: the label is 3; must be 0 to 2"),
        ({}, [], {"labels": (0, 2, -1)}, "record 2: the label is -1; must be 0 to 2"),
        ({}, [(0, np.s_[1:], 0)], {}, "records hold 1 scored texts and 1 labels each; must be sev"),
        ({}, [(0, np.s_[0, 1], 1)], {}, "records hold 4 scored texts and 1 labels each"),
        ({}, [], {"columns": ("input_ids", "labels")}, "no column attention_mask; PromptAccMetric"),
    ],
)
def test_records_of_prompts_that_do_not_fit(tmp_path, settings, changes, options, message):
    path = prompts(tmp_path / "x.mindrecord", *changes, **options)
    task = PromptChoice(ModelConfig(**{**SIZES, **settings}))
    with pytest.raises(DataError, match=message) as error:
        task.check(opened(path, task), training=False)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("change", [(1, np.s_[2], 0), (1, np.s_[1, 6], 2)])
def test_every_text_of_every_record_has_something_to_score(tmp_path, change):
    """Alone, the first id of a row is nothing: none stands before it."""
    for changes in ([change], [change, (1, np.s_[2, 0], 1)]):
        path = prompts(tmp_path / "x.mindrecord", *changes)
        task = PromptChoice(ModelConfig(**SIZES))
        records = opened(path, task)
        task.check(records, training=False)
        check = task.batch_check(records)
        check(records.read([0, 2]), np.array([0, 2]))
        check(records.read([]), np.array([], np.int64))
        with pytest.raises(DataError, match="record 1: attention_mask must be 1 at the ids that"):
            check(records.read([0, 1]), np.array([0, 1]))


class Both(ModelConfig):
    """Of a family that also has classifiers."""

    architectures: ClassVar = {"A": "text_generation", "B": "text_classification"}


def run_of(*metrics, **fields):
    model = SimpleNamespace(config=Both(**SIZES, **fields))
    return SimpleNamespace(model=model, metric=[MetricConfig(type=name) for name in metrics])


def test_what_a_run_is_scored_by():
    assert isinstance(scoring(run_of("PromptAccMetric")), PromptChoice)
    assert type(scoring(run_of("PerplexityMetric"))) is NextToken
    classes = run_of("Accuracy", task="text_classification")
    assert isinstance(scoring(classes), TextClass)
    for wrong in (
        run_of("PromptAccMetric", "PerplexityMetric"),
        run_of("PromptAccMetric", task="text_classification"),
    ):
        with pytest.raises(ConfigError, match="PromptAccMetric is asked for with .* leave one out"):
            scoring(wrong)


def test_records_of_prompts_are_none_of_a_language_model(tmp_path):
    task = NextToken(ModelConfig(**SIZES))
    records = opened(prompts(tmp_path / "x.mindrecord"), task)
    with pytest.raises(DataError, match="records hold one label each; .*metric.type: PromptAccM"):
        task.check(records, training=False)
