"""Scores over all records of a data set, as one compiled graph of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import Tensor, nn

from lm_core.data.pipeline import BatchIterator
from lm_core.data.records import Records
from lm_core.heartbeat import beat
from lm_core.log import get_logger, progress
from lm_core.metrics.accuracy import Accuracy
from lm_core.metrics.perplexity import Perplexity
from lm_core.metrics.prompt_accuracy import PromptAccuracy
from lm_core.nn.loss import IGNORED
from lm_core.parallel.collectives import sum_over_data
from lm_core.train.batch import Columns, causal_batch, fill_rows

if TYPE_CHECKING:
    from lm_core.nn.network import Network

log = get_logger(__name__)


class LossTerms(nn.Cell):
    """A model's `loss_terms` as a graph of its own."""

    def __init__(self, model: Network) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum of the token losses and the number of tokens, float32 scalars."""
        return self.model.loss_terms(input_ids, labels)


class TokenLosses(nn.Cell):
    """A model's `token_losses` as a graph of its own."""

    def __init__(self, model: Network) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of each token, float32 [B, S]."""
        return self.model.token_losses(input_ids, labels)


class Evaluator:
    """`evaluator() -> {"loss": ..., "PPL": ...}`, again and again as the model changes.

    Args:
        model: the model; it is left in the mode (training or not) that it was in.
        records: the data set; every record counts, the last batch is filled up.
        batch_size: records computed at once; changes the speed only.
        desc: what the progress line says.
        check: see BatchIterator.
    """

    metric: Callable[[], Any] = Perplexity

    def __init__(
        self,
        model: Network,
        records: Records,
        batch_size: int,
        desc: str = "evaluate",
        check: Callable[[Columns, np.ndarray], None] | None = None,
    ) -> None:
        self.model, self.records, self.desc, self.check = model, records, desc, check
        self.batch_size = min(batch_size, len(records))
        self.terms = LossTerms(model)

    def __call__(self) -> dict[str, float]:
        was_training = self.model.training
        self.model.set_train(False)
        try:
            return self._measure()
        finally:
            self.model.set_train(was_training)

    def add(self, metric: Any, columns: Columns) -> None:
        """Adds a batch to the metric."""
        config = self.model.config
        batch = causal_batch(columns, config.pad_token_id, config.eos_token_id)
        input_ids, labels = fill_rows(batch, self.batch_size)
        total, count = self.terms(Tensor(input_ids), Tensor(labels))
        metric.update(float(total.asnumpy()), float(count.asnumpy()))

    def _measure(self) -> dict[str, float]:
        metric, context = self.metric(), self.model.context
        batches = BatchIterator(
            self.records,
            self.batch_size * context.data_parallel,
            shuffle=False,
            drop_remainder=False,
            dp_rank=context.dp_rank,
            dp_size=context.data_parallel,
            vocab_size=self.model.config.vocab_size,
            check=self.check,
        )
        with progress(total=batches.steps_per_epoch, desc=self.desc, unit="batch") as bar:
            for columns in batches:
                self.add(metric, columns)
                found = metric.result().items()
                text = ", ".join(f"{name} {_shown(value)}" for name, value in found)
                bar.set_postfix_str(text, refresh=False)
                bar.update(1)
                beat()
        metric.sums = sum_over_data(context, metric.sums)
        return metric.result()


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


class ClassEvaluator(Evaluator):
    """`evaluator() -> {"loss": ..., "accuracy": ...}` of a classifier."""

    metric = Accuracy

    def add(self, metric: Accuracy, columns: Columns) -> None:
        """Adds a batch to the metric."""
        rows = len(columns["labels"])
        missing = ((0, self.batch_size - rows), (0, 0))
        ids = np.pad(columns["input_ids"], missing)
        mask = np.pad(columns["attention_mask"], missing, constant_values=1)
        logits = self.model(Tensor(ids), Tensor(mask)).asnumpy()
        metric.update(logits[:rows], columns["labels"][:, 0])


class PromptEvaluator(Evaluator):
    """`evaluator() -> {"accuracy": ..., "total_acc_num": ..., "total_num": ...}` of prompts.

    Args:
        *args: see Evaluator.
        choices: rows of S ids that a record holds, C; see `lm_core.data.tnews`.
        **options: see Evaluator.
    """

    metric = PromptAccuracy

    def __init__(self, *args: Any, choices: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.choices, self.losses = choices, TokenLosses(self.model)

    def __call__(self) -> dict[str, float]:
        found = super().__call__()
        log.info(
            "ACC: %.3f, total_acc_num: %d, total_num: %d",
            found["accuracy"], found["total_acc_num"], found["total_num"],
        )  # fmt: skip
        return found

    def add(self, metric: PromptAccuracy, columns: Columns) -> None:
        """Adds a batch to the metric."""
        count, ids = columns["input_ids"].shape
        shape = count * self.choices, ids // self.choices
        rows = {name: columns[name].reshape(shape) for name in ("input_ids", "attention_mask")}
        scored = causal_batch(rows)
        input_ids, labels = fill_rows(scored, self.batch_size * self.choices)
        losses = self.losses(Tensor(input_ids), Tensor(labels)).asnumpy()[: len(scored[1])]
        means = losses.sum(1, dtype=np.float64) / (scored[1] != IGNORED).sum(1)
        metric.update(means.reshape(count, self.choices), columns["labels"][:, 0])
