"""Loss and perplexity over all records of a data set, as one compiled graph of one shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from mindspore import Tensor, nn

from lm_core.data.pipeline import BatchIterator, RecordDataset
from lm_core.log import progress
from lm_core.metrics.perplexity import Perplexity
from lm_core.train.batch import causal_batch, fill_rows

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM


class LossTerms(nn.Cell):
    """A model's `loss_terms` as a graph of its own."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum of the token losses and the number of tokens, float32 scalars."""
        return self.model.loss_terms(input_ids, labels)


class Evaluator:
    """`evaluator() -> {"loss": ..., "PPL": ...}`, again and again as the model changes.

    Args:
        model: the model; it is left in the mode (training or not) that it was in.
        records: the data set; every record counts, the last batch is filled up.
        batch_size: records computed at once; changes the speed only.
        desc: what the progress line says.
    """

    def __init__(
        self, model: CausalLM, records: RecordDataset, batch_size: int, desc: str = "evaluate"
    ) -> None:
        self.model, self.records, self.desc = model, records, desc
        self.batch_size = min(batch_size, len(records))
        self.terms = LossTerms(model)

    def __call__(self) -> dict[str, float]:
        was_training = self.model.training
        self.model.set_train(False)
        try:
            return self._measure()
        finally:
            self.model.set_train(was_training)

    def _measure(self) -> dict[str, float]:
        metric = Perplexity()
        steps = -(-len(self.records) // self.batch_size)
        with progress(total=steps, desc=self.desc, unit="batch") as bar:
            for input_ids, labels in self._batches():
                total, count = self.terms(Tensor(input_ids), Tensor(labels))
                metric.update(float(total.asnumpy()), float(count.asnumpy()))
                bar.set_postfix_str(f"loss {metric.result()['loss']:.4f}", refresh=False)
                bar.update(1)
        return metric.result()

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        config = self.model.config
        batches = BatchIterator(
            self.records,
            self.batch_size,
            shuffle=False,
            drop_remainder=False,
            vocab_size=config.vocab_size,
        )
        for columns in batches:
            batch = causal_batch(columns, config.pad_token_id, config.eos_token_id)
            yield fill_rows(batch, self.batch_size)
