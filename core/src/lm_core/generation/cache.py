"""The key-value cache and the compiled graphs over it: prefill of whole prompts, steps of a token.

Rows are padded on the right and each has its own length, so a row's numbers never depend on its
neighbours. Caches are as long as one generation needs (rounded up), not as the context: a step
reads the whole cache.
"""

from __future__ import annotations

from collections import OrderedDict

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from lm_core.nn.decoder import CausalLM

KEPT = 4
"""Decoders kept per model: each holds its caches and two compiled graphs."""


def rounded(length: int, limit: int) -> int:
    """`length` rounded up so that few shapes are compiled, at most `limit`.

    To multiples of 32 up to 128, of 64 up to 512, of 128 above.
    """
    quantum = 32 if length <= 128 else 64 if length <= 512 else 128
    return max(length, min(limit, -(-length // quantum) * quantum))


class _OverCaches(nn.Cell):
    """A graph over a model and its caches.

    The model is an attribute that MindSpore does not count among this Cell's parts: at every call
    it would walk over all parts of parts, a third of a millisecond for 12 layers.
    """

    def __init__(self, model: CausalLM, k_caches: ParameterTuple, v_caches: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        object.__setattr__(self, "model", model)
        self.k_caches, self.v_caches = k_caches, v_caches


class _Prefill(_OverCaches):
    def construct(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.model.prefill(input_ids, lengths, self.k_caches, self.v_caches)


class _Step(_OverCaches):
    def construct(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.model.step(tokens, positions, self.k_caches, self.v_caches)


class _GreedyStep(_OverCaches):
    """Returns the most likely token, so that no logits travel to the host."""

    def construct(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return ops.Argmax(-1)(self.model.step(tokens, positions, self.k_caches, self.v_caches))


class Reorder(nn.Cell):
    """Moves rows of caches: row b gets what row rows[b] held."""

    def __init__(self, k_caches: ParameterTuple, v_caches: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.k_caches, self.v_caches = k_caches, v_caches

    def construct(self, rows: Tensor) -> Tensor:
        for cache in self.k_caches:
            ops.assign(cache, ops.gather(cache, rows, 0))
        for cache in self.v_caches:
            ops.assign(cache, ops.gather(cache, rows, 0))
        return rows


class CachedDecoder:
    """Generates for a fixed number of rows with room for `capacity` tokens each.

    Args:
        model: its weights are shared, not copied.
        batch: B, rows.
        capacity: C, the longest prompt + answer.
        prefix: begins the names of the caches; graphs over two decoders need different ones.
    """

    def __init__(self, model: CausalLM, batch: int, capacity: int, prefix: str = "") -> None:
        self.model = model
        self.batch = batch
        self.capacity = capacity
        self.heads = model.layers[0].attention.kv_heads
        k_caches, v_caches = new_caches(model, batch, capacity, prefix)
        self.caches = ParameterTuple([*k_caches, *v_caches])
        self._prefill = _Prefill(model, k_caches, v_caches)
        self._step = _Step(model, k_caches, v_caches)
        self._greedy = _GreedyStep(model, k_caches, v_caches)
        self._reorder = Reorder(k_caches, v_caches)

    @classmethod
    def for_model(cls, model: CausalLM, batch: int, needed: int) -> CachedDecoder:
        """A decoder with room for `needed` tokens a row, an earlier call's where one fits."""
        kept: OrderedDict[tuple[int, int], CachedDecoder] = model.__dict__.setdefault(
            "_decoders", OrderedDict()
        )
        key = (batch, rounded(needed, model.config.seq_length))
        if key not in kept:
            kept[key] = cls(model, *key)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Starts a new generation.

        Args:
            input_ids: int [B, S], S <= capacity, padded on the right with any valid id.
            lengths: int [B], real tokens per row, at least 1.

        Returns:
            float32 logits of each row's last real token, [B, V].
        """
        self._evaluate()
        length = input_ids.shape[1]
        padded = np.zeros((self.batch, rounded(length, self.capacity)), np.int32)
        padded[:, :length] = input_ids
        return self._prefill(Tensor(padded), Tensor(lengths.astype(np.int32))).asnumpy()

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Feeds one token per row.

        Args:
            tokens: int [B].
            positions: int [B], the place of each in its row, counted from 0, below capacity.

        Returns:
            float32 logits [B, V].
        """
        return self._step(
            Tensor(tokens.astype(np.int32)), Tensor(positions.astype(np.int32))
        ).asnumpy()

    def step_greedy(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """As `step`, but returns the most likely next token of each row, int32 [B]."""
        return self._greedy(
            Tensor(tokens.astype(np.int32)), Tensor(positions.astype(np.int32))
        ).asnumpy()

    def reorder(self, index: np.ndarray) -> None:
        """Row b continues what row index[b] held (beam search)."""
        rows = index.astype(np.int32)[:, None] * self.heads + np.arange(self.heads, dtype=np.int32)
        self._reorder(Tensor(rows.reshape(-1)))

    def _evaluate(self) -> None:
        if self.model.training:
            self.model.set_train(False)


def new_caches(
    model: CausalLM, batch: int, capacity: int, prefix: str = ""
) -> tuple[ParameterTuple, ParameterTuple]:
    """Empty caches of keys and of values: float32 [B * G, C, D] for each layer.

    Args:
        model: whose.
        batch: B.
        capacity: C.
        prefix: stands before the names of the parameters.
    """
    attention = model.layers[0].attention
    shape = (batch * attention.kv_heads, capacity, attention.head_dim)
    numbers = range(len(model.layers))
    return (
        ParameterTuple([_cache(f"{prefix}k_cache.{i}", shape) for i in numbers]),
        ParameterTuple([_cache(f"{prefix}v_cache.{i}", shape) for i in numbers]),
    )


def _cache(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(
        Tensor(np.zeros(shape, np.float32), ms.float32), name=name, requires_grad=False
    )
