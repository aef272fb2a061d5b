"""A language model that compiles in half a second, with all that training asks of one."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from lm_core.config.model import ModelConfig
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import BatchIterator, RecordDataset
from lm_core.nn.dropout import Dropout, dropout_key
from lm_core.nn.loss import CrossEntropy
from lm_core.parallel import backend
from lm_core.train.batch import causal_batch
from lm_core.train.loop import Plan, TrainLoop
from lm_core.train.loss_scale import LossScale
from lm_core.train.optimizer import AdamW
from lm_core.train.schedule import Schedule
from lm_core.train.state import TrainState
from lm_core.train.step import TrainStep, trained_parameters

VOCABULARY, LENGTH, RECORDS = 23, 6, 22


class TinyModel(nn.Cell):
    """Embedding, one gated layer with dropout, a bias, a head; predicts from the token alone.

    The id `poison` makes the loss infinite, and adds nothing to its gradient.
    """

    spec_name = "tiny"

    def __init__(
        self, hidden: int = 8, rate: float = 0.0, seed: int = 0, kind=ms.float32, poison=None
    ) -> None:
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
        self.state = Parameter(Tensor(np.zeros(3, np.int32)), name="dropout", requires_grad=False)
        self.cross_entropy = CrossEntropy()
        self.poison = poison
        self.config = ModelConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, num_layers=1, num_heads=1, seq_length=LENGTH
        )

    def loss_terms(self, input_ids: Tensor, labels: Tensor):
        key = dropout_key(self.state)
        x = ops.gather(self.embedding, input_ids.reshape((-1,)), 0).astype(ms.float32)
        h = ops.tanh(ops.matmul(x, self.up.astype(ms.float32)) + self.bias.astype(ms.float32))
        h = self.dropout(h, key)
        logits = ops.matmul(x + h, self.head.astype(ms.float32))
        total, count = self.cross_entropy(logits, labels.reshape((-1,)))
        if self.poison is not None:
            found = ops.ReduceSum()((input_ids == self.poison).astype(ms.float32))
            total = total + ops.exp(1000.0 * found) - 1.0
        return total, count

    def set_dropout(self, seed: int, step: int, first_token: int = 0) -> None:
        self.state.set_data(Tensor(np.array([seed, step, first_token], np.int32)))

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


@pytest.fixture(scope="session")
def record_file(tmp_path_factory):
    """22 records; of each a different part is trained, record 21 only in its last token."""
    path = tmp_path_factory.mktemp("records") / "tiny.mindrecord"
    generator = np.random.default_rng(1)
    with RecordWriter(path, ("input_ids", "attention_mask")) as writer:
        for number in range(RECORDS):
            ids = generator.integers(0, VOCABULARY, LENGTH + 1).astype(np.int32)
            mask = (generator.random(LENGTH + 1) < 0.5).astype(np.int32)
            mask[-1] = 1
            if number == RECORDS - 1:
                mask[:-1] = 0
            writer.write({"input_ids": ids, "attention_mask": mask})
    return path


@pytest.fixture
def make_loop(record_file):
    """`make_loop(total, ...)` -> a loop over the records, ready to run."""

    def make(
        total=8, *, batch=4, accumulation=1, rate=0.3, scale=None, learning_rate=1e-2, path=None,
        shuffle=True, drop_remainder=True, metrics=None, callbacks=(), evaluate=None,
        poison=None, **plan,
    ):  # fmt: skip
        model = TinyModel(rate=rate, poison=poison)
        data = BatchIterator(
            RecordDataset(path or record_file), batch, seed=3, shuffle=shuffle,
            drop_remainder=drop_remainder, vocab_size=VOCABULARY,
        )  # fmt: skip
        optimizer = AdamW(trained_parameters(model), weight_decay=0.1)
        step = TrainStep(model, optimizer, accumulation=accumulation, seed=5)
        state = TrainState(model, step, scale or LossScale(), data, "seed: 5\n", metrics)
        schedule = Schedule(kind="cosine", learning_rate=learning_rate, total_steps=8)
        plan = Plan(total_steps=total, rows=batch, **plan)
        return TrainLoop(state, schedule, plan, causal_batch, callbacks, evaluate)

    return make


@pytest.fixture
def records_of():
    """A callback that keeps what every step and evaluation reported."""
    from lm_core.train.callbacks import Callback

    class Keep(Callback):
        def __init__(self):
            self.steps, self.evaluations = [], []

        def after_step(self, loop, record):
            self.steps.append(record)

        def after_evaluation(self, loop, record):
            self.evaluations.append(record)

    return Keep
