"""Classes of whole texts: a decoder whose head reads the last token of each text.

A causal decoder has seen all of a text at its last token, and nothing of the padding behind it. So
training needs no other loss than a language model's: the label of a text stands at its last token
and all other positions are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from lm_core.nn import init
from lm_core.nn.decoder import CausalLM
from lm_core.nn.linear import Linear
from lm_core.nn.network import Network

_STEP = 32
"""Texts are filled up to multiples of this: each length needs a graph of its own."""


class SequenceClassifier(Network):
    """A decoder with a linear head for C = `config.num_labels` classes.

    Args:
        decoder: any language model; its own head is not used.
    """

    def __init__(self, decoder: CausalLM) -> None:
        config = decoder.config
        super().__init__(config, decoder.context, auto_prefix=False)
        self.spec_name = decoder.spec_name
        self.decoder = decoder
        self.dropout_state = decoder.dropout_state
        if decoder.context.is_last_stage:
            self.score = Linear(
                config.hidden_size,
                config.num_labels,
                bias=False,
                std=config.initializer_range,
                dtype=config.param_init_type,
            )
            self.score.update_parameters_name("score.")
            if not init.skip_initial_values():
                self.initialize(0, only=[self.score.weight.name])

    def enter(self, inputs: Tensor) -> Tensor:
        """As of the decoder."""
        return self.decoder.enter(inputs)

    def through(self, x: Tensor, inputs: Tensor) -> Tensor:
        """As of the decoder."""
        return self.decoder.through(x, inputs)

    def leave(self, x: Tensor) -> Tensor:
        """As of the decoder."""
        return self.decoder.leave(x)

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, C]."""
        return self.score(x)

    def construct(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of whole rows.

        Args:
            input_ids: int32 [B, S], padded on the right.
            attention_mask: int32 [B, S], 1 at tokens, of which each row has one or more.

        Returns:
            float32 [B, C].
        """
        batch, length = input_ids.shape
        lengths = attention_mask.astype(ms.float32).sum(1).astype(ms.int32)
        last = Tensor(np.arange(batch, dtype=np.int32) * length) + lengths - 1
        return self.logits(ops.gather(self.hidden(input_ids), last, 0)).astype(ms.float32)

    def classify(self, rows: Sequence[Sequence[int]], batch_size: int = 8) -> np.ndarray:
        """Logits of encoded texts, float32 [n, C]; each is what the text gives alone.

        Args:
            rows: ids of each text, 1 to `config.seq_length` of them.
            batch_size: texts computed at once; changes the speed only.
        """
        was_training = self.training
        self.set_train(False)
        try:
            # Texts of about one length stand together, so that little is computed for padding.
            order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
            found = np.zeros((len(rows), self.config.num_labels), np.float32)
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                found[chosen] = self._batch([rows[k] for k in chosen], min(batch_size, len(rows)))
            return found
        finally:
            self.set_train(was_training)

    def _batch(self, rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
        longest = max(map(len, rows))
        width = min(-(-longest // _STEP) * _STEP, self.config.seq_length)
        ids, mask = np.zeros((2, size, width), np.int32)
        mask[:, 0] = 1  # also of rows that only fill up the batch
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return self(Tensor(ids), Tensor(mask)).asnumpy()[: len(rows)]

    def forget_graphs(self) -> None:
        """Its own, and the decoder's."""
        super().forget_graphs()
        self.decoder.forget_graphs()

    def recompute_layers(self) -> None:
        """As of the decoder."""
        self.decoder.recompute_layers()

    def set_dropout(self, seed: int, step: int, first_token: int = 0) -> None:
        """As of the decoder."""
        self.decoder.set_dropout(seed, step, first_token)


def with_head(decoder: CausalLM) -> Network:
    """The network for the task of `decoder.config`: the decoder, or a classifier made of it."""
    if decoder.config.is_classifier:
        return SequenceClassifier(decoder)
    return decoder
