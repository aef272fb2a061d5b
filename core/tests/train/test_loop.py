"""The loop with a model that compiles in half a second."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from mindspore import Tensor

from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import DataError
from lm_core.testing.parity import assert_same
from lm_core.train.callbacks import Callback
from lm_core.train.evaluation import Evaluator, LossTerms
from lm_core.train.loss_scale import LossScale
from lm_core.train.nonfinite import TrainingError


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
    (losses, weights), (losses_scaled, weights_scaled) = results
    assert losses_scaled == losses
    assert_same(weights_scaled, weights)


def test_a_gradient_that_no_smaller_scale_can_mend_ends_the_run(make_loop):
    loop = make_loop(8, learning_rate=1e30)
    with pytest.raises(TrainingError) as caught:
        loop.run()
    text = str(caught.value)
    records = loop.state.data.record_ids(0, loop.steps - 1)
    assert f"step {loop.steps}: the " in text
    assert f"(records {', '.join(map(str, records))})" in text
    assert "\n" not in text and "lr_schedule.learning_rate" in text


def poisoned(path, count=22, bad=(5, 9, 13)):
    """Records of which some hold the id 22."""
    with RecordWriter(path, ("input_ids",)) as writer:
        for number in range(count):
            ids = np.arange(7, dtype=np.int32) + number % 15
            ids[3] = 22 if number in bad else ids[3]
            writer.write({"input_ids": ids})
    return path


def listed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_records(make_loop, values, tmp_path):
    file = tmp_path / "log" / "bad.jsonl"
    loop = make_loop(
        10, path=poisoned(tmp_path / "r.mindrecord"), poison=22, shuffle=False, nonfinite=file
    )
    with pytest.raises(TrainingError) as caught:
        loop.run()
    (line,) = caught.value.problems
    assert line.startswith("step 2: the loss is inf; the weights were not changed by this step")
    assert f"(records 4, 5, 6, 7), which are in {file}; lower lr_schedule" in line
    assert "runner_wrapper.nan_policy=skip" in line
    names = [f"{tmp_path}/r.mindrecord record {n}" for n in (4, 5, 6, 7)]
    assert listed(file) == [{"step": 2, "what": "loss", "value": "inf", "records": names}]
    assert (loop.steps, loop.state.step.updates) == (2, 1)


def test_steps_that_are_not_finite_are_left_out_where_that_is_asked_for(
    make_loop, values, records_of, tmp_path, caplog
):
    """Batches 2, 3 and 4 of an epoch of 5; a dynamic scale is none the wiser."""
    file, seen = tmp_path / "bad.jsonl", records_of()
    file.write_text('{"step": 1, "note": "of an earlier run"}\n')
    kept = []

    class Keep(Callback):
        def after_step(self, loop, record):
            kept.append(values(loop.state.model))

    options = {"path": poisoned(tmp_path / "r.mindrecord"), "poison": 22, "shuffle": False}
    options |= {"skip_nonfinite": True, "nonfinite": file}
    scale = LossScale(8.0, dynamic=True, window=100)
    loop = make_loop(7, scale=scale, callbacks=[seen, Keep()], **options)
    loop.run()
    bad = [2, 3, 4, 7]
    assert [record["step"] for record in seen.steps if record["skipped"]] == bad
    assert [line["step"] for line in listed(file)] == bad
    for number in range(2, 8):
        same = [(kept[number - 1][n] == kept[number - 2][n]).all() for n in kept[0]]
        assert all(same) if number in bad else not any(same), number
    assert scale.value == 8.0 and (loop.steps, loop.state.step.updates) == (7, 3)
    said = (
        f"step 2: the loss is inf; the step is left out (records 4, 5, 6, 7), which are in {file}"
    )
    assert said in caplog.text
    # Resumed after step 3: what is known of later steps is found out again.
    again = make_loop(7, scale=LossScale(8.0, dynamic=True, window=100), **options)
    loop.state.save(tmp_path / "CKP-7")
    again.state.load(tmp_path / "CKP-7")
    with file.open("a") as unfinished:
        unfinished.write('{"step": 1, "wh')
    again.nonfinite.begin(3)
    assert [line["step"] for line in listed(file)] == [2, 3]


def test_too_many_in_a_row_are_not_the_fault_of_the_data(make_loop, tmp_path):
    path = poisoned(tmp_path / "r.mindrecord", bad=range(4, 22))
    loop = make_loop(15, path=path, poison=22, shuffle=False, skip_nonfinite=True)
    loop.run()  # 4 of 5, and then a good one: the count begins anew
    path = poisoned(tmp_path / "s.mindrecord", bad=range(22))
    loop = make_loop(15, path=path, poison=22, skip_nonfinite=True)
    with pytest.raises(TrainingError, match="step 10: .* like that of the 9 steps before it"):
        loop.run()


def test_a_list_that_cannot_be_written_is_no_reason_to_stop(make_loop, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    path = poisoned(tmp_path / "r.mindrecord")
    file = tmp_path / "file" / "bad.jsonl"
    options = {"poison": 22, "shuffle": False, "skip_nonfinite": True, "nonfinite": file}
    make_loop(3, path=path, **options).run()
    assert f"{file} cannot take" in caplog.text


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
