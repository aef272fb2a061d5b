"""A language model that compiles in half a second, with all that training asks of one."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from lm_core.nn.dropout import Dropout
from lm_core.nn.loss import CrossEntropy
from lm_core.parallel import backend

VOCABULARY = 23


class TinyModel(nn.Cell):
    """Embedding, one gated layer with dropout, a bias, a head; predicts from the token alone."""

    spec_name = "tiny"

    def __init__(self, hidden: int = 8, rate: float = 0.0, seed: int = 0, kind=ms.float32) -> None:
        backend.setup()
        super().__init__()
        generator = np.random.default_rng(seed)

        def weight(name: str, *shape: int) -> Parameter:
            values = generator.normal(0, 0.3, shape).astype(np.float32)
            return Parameter(Tensor(values, kind), name=name)

        self.embedding = weight("embedding.weight", VOCABULARY, hidden)
        self.up = weight("up.weight", hidden, hidden)
        self.bias = weight("up.bias", hidden)
        self.head = weight("head.weight", hidden, VOCABULARY)
        self.dropout = Dropout(rate, 0)
        self.state = Parameter(Tensor(np.zeros(2, np.int32)), name="dropout", requires_grad=False)
        self.cross_entropy = CrossEntropy()

    def loss_terms(self, input_ids: Tensor, labels: Tensor):
        key = self.state[0] * 668265263 + self.state[1] * 374761393
        x = ops.gather(self.embedding, input_ids.reshape((-1,)), 0).astype(ms.float32)
        h = ops.tanh(ops.matmul(x, self.up.astype(ms.float32)) + self.bias.astype(ms.float32))
        h = self.dropout(h, key)
        logits = ops.matmul(x + h, self.head.astype(ms.float32))
        return self.cross_entropy(logits, labels.reshape((-1,)))

    def set_dropout(self, seed: int, step: int) -> None:
        self.state.set_data(Tensor(np.array([seed, step], np.int32)))

    def named_parameters(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.get_parameters() if p is not self.state}


@pytest.fixture
def tiny_model() -> Callable[..., TinyModel]:
    return TinyModel


@pytest.fixture
def values() -> Callable[[nn.Cell], dict[str, np.ndarray]]:
    """Copies of a model's weights."""
    return lambda model: {n: p.asnumpy().copy() for n, p in model.named_parameters().items()}


@pytest.fixture
def micro_batch() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Random ids and labels, a share of them not trained."""

    def make(rows: int, length: int = 6, seed: int = 0, ignored: float = 0.0):
        generator = np.random.default_rng(seed)
        ids, labels = generator.integers(0, VOCABULARY, (2, rows, length)).astype(np.int32)
        labels[generator.random(labels.shape) < ignored] = -100
        return ids, labels

    return make
