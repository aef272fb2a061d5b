"""What a task makes of records: which columns, what is trained, how it is scored.

Steps, loop, optimizer and checkpoints are the same for all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.data.packing import Ends
from lm_core.data.pipeline import RecordDataset
from lm_core.data.records import Records
from lm_core.errors import ConfigError, DataError
from lm_core.log import get_logger
from lm_core.train.batch import Columns, causal_batch, class_batch
from lm_core.train.evaluation import ClassEvaluator, Evaluator, PromptEvaluator

if TYPE_CHECKING:
    from lm_core.config.data import DatasetConfig
    from lm_core.config.model import ModelConfig
    from lm_core.config.schema import RunConfig
    from lm_core.train.step import MicroBatch

_LABELS = ("labels",)
_LOOK = 64
"""Records in which the end of a document is looked for."""
_CLASS_COLUMNS = ("input_ids", "attention_mask", "labels")


class NextToken:
    """Every token of a record is predicted from those before it.

    Attributes:
        metric: the name of the score.
        unit: what is trained and counted.
    """

    metric, unit = "PerplexityMetric", "tokens"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def open(self, section: DatasetConfig) -> RecordDataset:
        """The records of a data set. Raises DataError if they cannot be read."""
        found = RecordDataset(
            section.data_loader.dataset_dir, section.input_columns, ends=self._ends(section)
        )
        if found.ends is not None:
            _look_for_ends(found, found.ends.end)
        return found

    def _ends(self, section: DatasetConfig) -> Ends | None:
        """How the documents of records are kept apart, if they are to be."""
        if not section.eod_reset:
            return None
        config = self.config
        own = [section.eod_token_id, config.eod_token_id, *config.eos_token_ids]
        end = next((token for token in own if token is not None), None)
        if end is None or end >= config.vocab_size:
            what = "is not set" if end is None else f"is {end}"
            raise ConfigError(
                f"eod_token_id: {what} and eod_reset is True; must be the token that ends "
                f"documents, below vocab_size {config.vocab_size}; set it in the data section"
            )
        return Ends(end, config.pad_token_id)

    def check(self, records: Records, training: bool) -> None:
        """Raises DataError if records do not fit the model."""
        first = next(records.stream([0]))
        if len(first.get("labels", first["input_ids"])) == 1 < len(first["input_ids"]):
            raise DataError(
                f"{records.path}: records hold one label each; must be records of a language "
                f"model; use others, or a run with trainer.type: text_classification (of prompts: "
                f"with metric.type: PromptAccMetric)"
            )
        records.check_length(self.config.seq_length, exact=training)
        if records.row_length < 2:
            raise DataError(
                f"{records.path}: records hold one id, and there is nothing to predict; "
                "make records of at least 2"
            )

    def batch_check(self, records: Records) -> Callable[[Columns, np.ndarray], None] | None:
        """None: nothing beyond the ids is checked in each batch."""
        return None

    @property
    def prepare(self) -> Callable[[Columns], MicroBatch]:
        """Columns to input_ids and aligned labels."""
        config = self.config
        return partial(
            causal_batch, pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id
        )

    def evaluator(self, model: Any, records: Records, batch_size: int) -> Evaluator:
        """Measures loss and perplexity."""
        return Evaluator(model, records, batch_size)


class TextClass:
    """Every record has one class. Attributes as NextToken."""

    metric, unit = "Accuracy", "records"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def open(self, section: DatasetConfig) -> RecordDataset:
        """The records of a data set. Raises DataError if they cannot be read or have no labels."""
        path = section.data_loader.dataset_dir
        records = RecordDataset(path, section.input_columns, single=_LABELS)
        _check_columns(records, "text classification", "txtcls")
        return records

    def check(self, records: Records, training: bool) -> None:
        """Compares length and all labels with the model; warns of classes without a record.

        Raises:
            DataError: they do not fit.
        """
        config, first = self.config, next(records.stream([0]))
        length = len(first["input_ids"])
        if len(first["labels"]) != 1:
            raise DataError(
                f"{records.path}: records hold {len(first['labels'])} labels each; must hold one, "
                f"the class of the text; write the records with `preprocess txtcls`"
            )
        if length > config.seq_length:
            raise DataError(
                f"{records.path}: records hold {length} ids; seq_length {config.seq_length} is the "
                f"most; run preprocess with --max_length {config.seq_length} or less"
            )
        labels = records.values("labels")
        wrong = np.flatnonzero((labels < 0) | (labels >= config.num_labels))
        if wrong.size:
            raise DataError(
                f"{records.locate(int(wrong[0]))}: the label is {labels[wrong[0]]}; must be 0 to "
                f"{config.num_labels - 1}; set model.model_config.num_labels to the number of "
                f"classes (at least {labels.max() + 1}), or mend the records"
            )
        empty = sorted(set(range(config.num_labels)) - set(labels.tolist()))
        if training and empty:
            get_logger(__name__).warning(
                "%s: has no record of class %s; is num_labels %d right?",
                records.path, ", ".join(map(str, empty)), config.num_labels,
            )  # fmt: skip

    def batch_check(self, records: Records) -> Callable[[Columns, np.ndarray], None]:
        """What checks the masks of each batch; it raises DataError."""
        return partial(_check_masks, records)

    @property
    def prepare(self) -> Callable[[Columns], MicroBatch]:
        """Columns to input_ids and labels at the last tokens."""
        return class_batch

    def evaluator(self, model: Any, records: Records, batch_size: int) -> Evaluator:
        """Measures loss and accuracy."""
        return ClassEvaluator(model, records, batch_size, check=self.batch_check(records))


class PromptChoice(NextToken):
    """A language model is asked which of several prompts makes a text most likely; see data.tnews.

    Nothing is trained that way. `eod_reset` means nothing here: no row holds two documents.
    """

    metric, unit = "PromptAccMetric", "records"

    def open(self, section: DatasetConfig) -> RecordDataset:
        """The records of a data set. Raises DataError if they cannot be read."""
        path = section.data_loader.dataset_dir
        return RecordDataset(path, section.input_columns, single=_LABELS)

    def check(self, records: Records, training: bool) -> None:
        """Compares the number of prompts, their length and all labels with the model.

        Raises:
            DataError: they do not fit.
        """
        _check_columns(records, "PromptAccMetric", "tnews")
        config, choices = self.config, prompts_of(records)
        if config.is_set("num_labels") and config.num_labels != choices:
            raise DataError(
                f"{records.path}: records hold {choices} scored texts each; num_labels "
                f"{config.num_labels} must be the same; set model.model_config.num_labels="
                f"{choices}, or run preprocess with --num_labels {config.num_labels}"
            )
        length = records.row_length // choices
        if length > config.seq_length + 1:
            raise DataError(
                f"{records.path}: rows hold {length} ids; must be at most "
                f"{config.seq_length + 1}, seq_length and the last target; run preprocess with "
                f"--max_length {config.seq_length + 1}"
            )
        labels = records.values("labels")
        wrong = np.flatnonzero((labels < 0) | (labels >= choices))
        if wrong.size:
            raise DataError(
                f"{records.locate(int(wrong[0]))}: the label is {labels[wrong[0]]}; must be 0 to "
                f"{choices - 1}, the number of the true text; write the records again"
            )

    def batch_check(self, records: Records) -> Callable[[Columns, np.ndarray], None]:
        """What checks that each text of a batch has something to score; it raises DataError."""
        return partial(_check_scored, records, prompts_of(records))

    def evaluator(self, model: Any, records: Records, batch_size: int) -> Evaluator:
        """Measures the accuracy."""
        check = self.batch_check(records)
        return PromptEvaluator(model, records, batch_size, check=check, choices=prompts_of(records))


Objective = NextToken | TextClass


def scoring(run: RunConfig) -> Objective:
    """What held-out records are scored by: as the model is trained, or as `metric` says.

    Raises:
        ConfigError: `metric` and the task do not go together, or several metrics.
    """
    config = run.model.config
    kinds = [metric.type for metric in run.metric]
    if "prompt_accuracy" not in kinds:
        return objective(config)
    if config.is_classifier or len(set(kinds)) > 1:
        beside = "text classification" if config.is_classifier else "another metric"
        raise ConfigError(
            f"metric: PromptAccMetric is asked for with {beside}; it must be alone, in a run of "
            f"text generation, since it needs records of its own; leave one out"
        )
    return PromptChoice(config)


def objective(config: ModelConfig) -> Objective:
    """The objective of a model's task."""
    return TextClass(config) if config.is_classifier else NextToken(config)


def prompts_of(records: Records) -> int:
    """How many scored texts, of one length, each record holds: the runs of ones in its mask.

    Raises:
        DataError: there are not several.
    """
    first = next(records.stream([0]))
    found = int((np.diff(first["attention_mask"], prepend=0) > 0).sum())
    if found < 2 or len(first["attention_mask"]) % found or len(first["labels"]) != 1:
        raise DataError(
            f"{records.path}: records hold {found} scored texts and {len(first['labels'])} labels "
            f"each; must be several texts of one length, and the number of the true one; write "
            f"the records with `preprocess tnews`"
        )
    return found


def _check_columns(records: Records, what: str, preprocessor: str) -> None:
    missing = [name for name in _CLASS_COLUMNS if name not in records.columns]
    if missing:
        raise DataError(
            f"{records.path}: has no column {', '.join(missing)}; {what} needs "
            f"{', '.join(_CLASS_COLUMNS)}; write the records with `preprocess {preprocessor}`"
        )


def _check_scored(
    records: Records, choices: int, columns: Mapping[str, np.ndarray], rows: np.ndarray
) -> None:
    """The loss of a text is a mean over its mask, the first id apart."""
    mask = columns["attention_mask"].reshape(len(rows), choices, -1 if len(rows) else 1)
    bad = (mask[:, :, 1:].sum(2) == 0).any(1) | ((mask != 0) & (mask != 1)).any((1, 2))
    if bad.any():
        raise DataError(
            f"{records.locate(int(rows[np.argmax(bad)]))}: attention_mask must be 1 at the ids "
            f"that are scored, one or more of each text, and else 0; write the records with "
            f"`preprocess tnews`"
        )


def _look_for_ends(records: RecordDataset, end: int) -> None:
    """Warns where `eod_reset` would change nothing: records written with another token."""
    some = min(_LOOK, len(records))
    if not any((row["input_ids"] == end).any() for row in records.stream(range(some))):
        get_logger(__name__).warning(
            "%s: eod_reset is True, but the first %d records do not hold the token %d that ends "
            "documents; is eod_token_id right?", records.path, some, end,
        )  # fmt: skip


def _check_masks(records: Records, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """The last token of a row is found by counting: ones, then zeros to the end."""
    mask = columns["attention_mask"]
    bad = (mask[:, 0] != 1) | ((mask != 0) & (mask != 1)).any(1) | (np.diff(mask) > 0).any(1)
    if bad.any():
        raise DataError(
            f"{records.locate(int(rows[np.argmax(bad)]))}: attention_mask must be ones at the "
            f"tokens, at least one, and then zeros; write the records with `preprocess txtcls`"
        )
