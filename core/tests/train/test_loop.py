"""The loop with a model that compiles in half a second."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from mindspore import Tensor

from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import DataError
from lm_core.train.callbacks import Callback
from lm_core.train.evaluation import Evaluator, LossTerms
from lm_core.train.loop import TrainingError
from lm_core.train.loss_scale import LossScale


def test_an_overflow_halves_the_scale_and_training_goes_on(make_loop, values, records_of):
    """Overflows at the start cost steps and nothing else."""
    seen = records_of()
    scale = LossScale(2.0**70, dynamic=True, window=1000)
    loop = make_loop(8, scale=scale, callbacks=[seen])
    before = values(loop.state.model)
    loop.run()
    skipped = [record["skipped"] for record in seen.steps]
    count = sum(skipped)
    assert 0 < count < 8
    assert skipped == [True] * count + [False] * (8 - count)
    assert scale.value == 2.0 ** (70 - count)
    assert [r["loss_scale"] for r in seen.steps[: count + 1]] == [
        2.0 ** (70 - min(n, count)) for n in range(1, count + 2)
    ]
    assert (loop.state.step.steps, loop.state.step.updates) == (8, 8 - count)
    assert all(np.isfinite(record["loss"]) for record in seen.steps)
    assert all((values(loop.state.model)[name] != old).any() for name, old in before.items())


def test_a_scale_that_is_a_power_of_two_changes_no_bit(make_loop, values, records_of):
    results = []
    for scale in (1.0, 1024.0):
        seen = records_of()
        loop = make_loop(6, scale=LossScale(scale), callbacks=[seen], accumulation=2)
        loop.run()
        results.append(([r["loss"] for r in seen.steps], values(loop.state.model)))
    assert results[0][0] == results[1][0]
    for name, array in results[0][1].items():
        assert array.tobytes() == results[1][1][name].tobytes(), name


def test_a_gradient_that_no_smaller_scale_can_mend_ends_the_run(make_loop):
    loop = make_loop(8, learning_rate=1e30)
    with pytest.raises(TrainingError) as caught:
        loop.run()
    text = str(caught.value)
    records = loop.state.data.record_ids(0, loop.steps - 1)
    assert f"step {loop.steps}: the " in text
    assert f"(records {', '.join(map(str, records))})" in text
    assert "\n" not in text and "lr_schedule.learning_rate" in text


def test_a_record_without_a_trained_token_is_named(make_loop, tmp_path):
    path = tmp_path / "r.mindrecord"
    with RecordWriter(path, ("input_ids", "attention_mask")) as writer:
        for number in range(4):
            mask = np.full(7, int(number != 2), np.int32)
            writer.write({"input_ids": np.arange(7, dtype=np.int32), "attention_mask": mask})
    with pytest.raises(DataError, match=r"r\.mindrecord record 2: has no trained token"):
        make_loop(8, path=path).run()


def test_an_id_that_the_model_does_not_know_is_named(make_loop, tmp_path):
    path = tmp_path / "r.mindrecord"
    with RecordWriter(path, ("input_ids",)) as writer:
        for number in range(4):
            writer.write({"input_ids": np.full(7, 23 if number == 1 else 22, np.int32)})
    with pytest.raises(DataError, match=r"r\.mindrecord.*23"):
        make_loop(8, path=path).run()


def test_a_last_short_batch_trains_all_of_its_records_and_no_other(make_loop, records_of):
    """22 records in batches of 4: the 6th has 2 of them, and the same compiled graph."""
    seen = records_of()
    loop = make_loop(
        6, shuffle=False, drop_remainder=False, learning_rate=1e-30, rate=0.0, callbacks=[seen]
    )
    loop.run()
    assert len(loop.state.step._fused.compile_cache) == 1
    records = RecordDataset(loop.state.data.dataset.path)
    for record, first in zip(seen.steps, range(0, 22, 4), strict=True):
        columns = records.read(range(first, min(first + 4, 22)))
        ids, labels = loop.prepare(columns)
        total, count = LossTerms(loop.state.model)(Tensor(ids), Tensor(labels))
        assert record["tokens"] == int(count.asnumpy())
        assert record["loss"] == pytest.approx(float((total / count).asnumpy()), rel=1e-6)
    assert [record["epoch"] for record in seen.steps] == [1] * 6


def test_when_evaluations_are_due(make_loop, records_of):
    """5 steps an epoch."""

    def steps(**plan):
        seen = records_of()
        make_loop(12, callbacks=[seen], evaluate=lambda: {"loss": 1.0, "PPL": 2.0}, **plan).run()
        return [record["step"] for record in seen.evaluations]

    assert steps(eval_steps=4) == [4, 8, 12]
    assert steps(eval_epochs=1) == [5, 10]
    assert steps(eval_epochs=2) == [10]
    assert steps(eval_steps=6, eval_epochs=1) == [5, 6, 10, 12]
    assert steps() == []


def test_the_order_of_the_callbacks(make_loop):
    calls = []

    class Note(Callback):
        def __getattribute__(self, name):
            if name in ("begin", "after_step", "after_evaluation", "end_step", "finish", "close"):
                return lambda *_: calls.append(name)
            return super().__getattribute__(name)

    make_loop(2, callbacks=[Note()], evaluate=lambda: {"loss": 1.0, "PPL": 2.0}, eval_steps=2).run()
    step = ["after_step", "end_step"]
    last = ["after_step", "after_evaluation", "end_step"]
    assert calls == ["begin", *step, *last, "finish", "close"]
    calls.clear()
    with pytest.raises(TrainingError):
        make_loop(8, callbacks=[Note()], learning_rate=1e30).run()
    assert calls[-1] == "close" and "finish" not in calls


def test_compiling_is_announced_once(make_loop, caplog):
    with caplog.at_level(logging.INFO, logger="lm_core"):
        make_loop(4).run()
    lines = [r.getMessage() for r in caplog.records]
    assert sum("compiling" in line for line in lines) == 1
    assert sum("compiled and ran in" in line for line in lines) == 1


@pytest.mark.parametrize("batch", [1, 4, 5, 22, 1000])
def test_evaluation(make_loop, tiny_model, record_file, batch):
    """The mean over all trained tokens, in float64, whatever the batch; the mode stays."""
    model = tiny_model(rate=0.5)
    records = RecordDataset(record_file)
    model.set_train(True)
    found = Evaluator(model, records, batch)()
    assert model.training
    ids, labels = make_loop(1).prepare(records.read(range(22)))
    x = model.embedding.asnumpy().astype(np.float64)[ids]
    h = np.tanh(x @ model.up.asnumpy() + model.bias.asnumpy())
    logits = (x + h) @ model.head.asnumpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    trained = labels != -100
    picked = np.take_along_axis(log_p, np.where(trained, labels, 0)[..., None], -1)[..., 0]
    expected = -picked[trained].mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["PPL"] == pytest.approx(np.exp(found["loss"]))
