"""Generation without a cache: each token costs a pass over the whole sequence (`use_past: False`).

Slow; what the cached decoder is compared with, as it shares nothing with it but the weights.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from lm_core.generation.cache import rounded
from lm_core.nn.decoder import CausalLM


class _LastLogits(nn.Cell):
    """The whole-sequence pass, with the head on one position per row only."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, last: Tensor) -> Tensor:
        return self.model.logits(ops.gather(self.model.hidden(input_ids), last, 0))


class UncachedDecoder:
    """Has the methods of `CachedDecoder`; keeps the tokens instead of keys and values.

    Args:
        model: its weights are shared, not copied.
        batch: B, rows.
        capacity: C, the longest prompt + answer.
    """

    def __init__(self, model: CausalLM, batch: int, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.tokens = np.zeros((batch, capacity), np.int32)
        self._graph = model._graphs.setdefault("last_logits", _LastLogits(model))

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Starts a new generation; see `CachedDecoder.prefill`."""
        if self.model.training:
            self.model.set_train(False)
        self.tokens[:] = 0
        self.tokens[:, : input_ids.shape[1]] = input_ids
        return self._logits(lengths - 1)

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Appends one token per row; see `CachedDecoder.step`."""
        self.tokens[np.arange(len(tokens)), positions] = tokens
        return self._logits(positions)

    def reorder(self, index: np.ndarray) -> None:
        """Row b continues what row index[b] held."""
        self.tokens = self.tokens[index]

    def _logits(self, last: np.ndarray) -> np.ndarray:
        # What stands behind a row's last token changes nothing, so few lengths need compiling.
        length = rounded(int(last.max()) + 1, self.capacity)
        rows = np.arange(len(last)) * length + last
        return self._graph(Tensor(self.tokens[:, :length]), Tensor(rows.astype(np.int32))).asnumpy()
