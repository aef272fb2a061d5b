"""Batches: every record once, in an order and from a position that are exact."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from lm_core.data import pipeline
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import BatchIterator, RecordDataset
from lm_core.errors import DataError


@pytest.fixture
def dataset(records, tmp_path):
    """23 records in three files; record k holds k."""
    records(tmp_path / "b.mindrecord", 9)
    records(tmp_path / "c.mindrecord", 13, start=9, splits=1)
    records(tmp_path / "d.mindrecord", 1, start=22)
    return RecordDataset(tmp_path)


def numbers(batches):
    return [batch["input_ids"][:, 0].tolist() for batch in batches]


def test_records_by_number(dataset):
    assert len(dataset) == 23
    assert dataset.row_length == 5
    assert dataset.columns == ("input_ids",)
    wanted = [22, 0, 9, 8, 9, 9]
    got = dataset.read(wanted)["input_ids"]
    assert got.dtype == np.int32
    assert got.tolist() == [[k] * 5 for k in wanted]
    assert dataset.read([])["input_ids"].shape == (0, 5)
    repeated = list(range(23)) * 3
    assert dataset.read(repeated)["input_ids"][:, 0].tolist() == repeated
    for wrong in ([23], [-1], [0, 99]):
        with pytest.raises(IndexError, match="numbered 0 to 22"):
            dataset.read(wrong)


def test_where_a_record_is(dataset):
    assert dataset.locate(0).endswith("b.mindrecord record 0")
    assert dataset.locate(8).endswith("b.mindrecord record 8")
    assert dataset.locate(9).endswith("c.mindrecord record 0")
    assert dataset.locate(22).endswith("d.mindrecord record 0")


@pytest.mark.parametrize("window", [1, 4, 7, 1 << 16])
def test_windows_change_nothing(dataset, monkeypatch, window):
    whole = numbers(BatchIterator(dataset, 4, seed=3, drop_remainder=False))
    monkeypatch.setattr(pipeline, "_WINDOW", window)
    assert numbers(BatchIterator(dataset, 4, seed=3, drop_remainder=False)) == whole
    assert dataset.read(range(23))["input_ids"][:, 0].tolist() == list(range(23))


def test_in_order_without_shuffling(dataset):
    batches = BatchIterator(dataset, 5, shuffle=False, drop_remainder=False)
    assert batches.steps_per_epoch == 5
    for epoch in range(2):
        assert batches.epoch == epoch
        got = numbers(batches)
        assert got == [list(range(k, min(k + 5, 23))) for k in range(0, 23, 5)]


def test_every_record_once_and_the_remainder_left_out(dataset):
    kept = BatchIterator(dataset, 5, seed=1, drop_remainder=False)
    dropped = BatchIterator(dataset, 5, seed=1)
    assert (kept.steps_per_epoch, dropped.steps_per_epoch) == (5, 4)
    for _ in range(3):
        whole, full = numbers(kept), numbers(dropped)
        assert sorted(sum(whole, [])) == list(range(23))
        assert full == whole[:4]


def test_the_order_depends_on_seed_and_epoch_only(dataset):
    def order(seed, **arguments):
        batches = BatchIterator(dataset, 23, seed=seed, **arguments)
        return [tuple(numbers(batches)[0]) for _ in range(3)]

    assert order(0) == order(0)
    assert len({*order(0), *order(1)}) == 6
    smaller = BatchIterator(dataset, 1, seed=0)
    assert [tuple(sum(numbers(smaller), [])) for _ in range(3)] == order(0)


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_going_on_from_every_position(dataset, shuffle, drop):
    def make():
        return BatchIterator(dataset, 4, seed=9, shuffle=shuffle, drop_remainder=drop)

    batches, states, run = make(), [], []
    for _ in range(3):
        for batch in batches:
            run.append(batch["input_ids"][:, 0].tolist())
            states.append(json.loads(json.dumps(batches.state())))
    for done, state in enumerate(states, 1):
        resumed, rest = make(), []
        resumed.load_state(state)
        while resumed.epoch < 3:
            rest += numbers(resumed)
        assert rest == run[done:]


def test_stopping_inside_an_epoch(dataset):
    batches = BatchIterator(dataset, 4, seed=2)
    reference = BatchIterator(dataset, 4, seed=2)
    expected = numbers(reference) + numbers(reference)
    got = []
    while len(got) < 10:
        for batch in batches:
            got.append(batch["input_ids"][:, 0].tolist())
            if len(got) % 3 == 0:
                break
    assert got == expected[:10]
    assert (batches.epoch, batches.step) == (2, 0)


def test_the_state_stands_after_the_batch(dataset):
    batches = BatchIterator(dataset, 10)
    assert (batches.epoch, batches.step) == (0, 0)
    iterator = iter(batches)
    next(iterator)
    assert (batches.epoch, batches.step) == (0, 1)
    next(iterator)
    assert (batches.epoch, batches.step) == (1, 0)
    assert next(iterator, None) is None
    assert (batches.epoch, batches.step) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 5}, {"seed": 1}, {"shuffle": False}, {"drop_remainder": False}],
)
def test_a_position_of_another_order_is_refused(dataset, change):
    state = BatchIterator(dataset, 4).state()
    other = BatchIterator(dataset, **{"batch_size": 4, **change})
    name = next(iter(change))
    with pytest.raises(DataError, match=f"resume: {name} was") as caught:
        other.load_state(state)
    (problem,) = caught.value.problems
    if name == "batch_size":
        assert "was 4, now it is 5" in problem
        assert "runner_config.batch_size x gradient_accumulation_steps x data_parallel" in problem
        assert problem.endswith("change runner_config.batch_size")
    else:
        assert problem.endswith("set it back")


def test_a_position_in_other_data_is_refused(dataset, records, tmp_path):
    state = BatchIterator(dataset, 4).state()
    records(tmp_path / "e.mindrecord", 1)
    with pytest.raises(DataError, match="resume: records was 23, now it is 24"):
        BatchIterator(RecordDataset(tmp_path), 4).load_state(state)


@pytest.mark.parametrize("dp", [2, 3, 6])
@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_each_global_batch(dataset, dp, drop, shuffle):
    one = BatchIterator(dataset, 6, seed=4, shuffle=shuffle, drop_remainder=drop)
    ranks = [
        BatchIterator(dataset, 6, 4, shuffle, drop, dp_rank=rank, dp_size=dp) for rank in range(dp)
    ]
    for _ in range(2):
        whole = numbers(one)
        parts = [numbers(rank) for rank in ranks]
        assert {len(part) for part in parts} == {len(whole)}
        for step, batch in enumerate(whole):
            shares = [part[step] for part in parts]
            assert sum(shares, []) == batch
            assert max(map(len, shares)) - min(map(len, shares)) <= (len(batch) != 6)


def test_a_position_is_that_of_all_ranks(dataset):
    """Saved with two ranks, resumed with three: the same global batches."""
    two = BatchIterator(dataset, 6, dp_rank=1, dp_size=2)
    iterator = iter(two)
    next(iterator)
    three = [BatchIterator(dataset, 6, dp_rank=rank, dp_size=3) for rank in range(3)]
    for rank in three:
        rank.load_state(two.state())
    one = BatchIterator(dataset, 6)
    one.load_state(two.state())
    assert sum((next(iter(rank))["input_ids"][:, 0].tolist() for rank in three), []) == (
        next(iter(one))["input_ids"][:, 0].tolist()
    )


def test_record_numbers_of_any_batch(dataset):
    batches = BatchIterator(dataset, 4, seed=6, drop_remainder=False, dp_rank=1, dp_size=2)
    for epoch in range(2):
        expected = [batches.record_ids(epoch, step).tolist() for step in range(6)]
        assert numbers(batches) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 24}, "batch_size: 24 is more than the 23 records"),
        ({"batch_size": 0}, "batch_size: 0 records cannot be shared"),
        ({"batch_size": 5, "dp_size": 2}, "use a multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit(dataset, arguments, message):
    with pytest.raises(DataError, match=message):
        BatchIterator(dataset, **arguments)


def test_one_batch_larger_than_the_data(dataset):
    batches = BatchIterator(dataset, 100, drop_remainder=False)
    assert sorted(numbers(batches)[0]) == list(range(23))


def test_columns(records, tmp_path):
    path = records(tmp_path / "x.mindrecord", 3, columns=("labels", "input_ids", "other"))
    assert RecordDataset(path).columns == ("input_ids", "labels")
    assert list(RecordDataset(path, ["other"]).read([1])) == ["other"]
    with pytest.raises(DataError, match="has no column attention_mask; it has input_ids, labels"):
        RecordDataset(path, ["input_ids", "attention_mask"])
    strange = records(tmp_path / "y.mindrecord", 3, columns=("text",))
    with pytest.raises(DataError, match="has no column input_ids, attention_mask, labels"):
        RecordDataset(strange)


def test_files_with_different_columns(records, tmp_path):
    records(tmp_path / "x.mindrecord", 3, columns=("input_ids", "labels"))
    records(tmp_path / "y.mindrecord", 3)
    with pytest.raises(DataError, match="y.mindrecord: has no column labels"):
        RecordDataset(tmp_path)


def test_files_with_different_lengths(records, tmp_path):
    records(tmp_path / "x.mindrecord", 3)
    records(tmp_path / "y.mindrecord", 3, length=7)
    dataset = RecordDataset(tmp_path)
    with pytest.raises(
        DataError, match="y.mindrecord: records hold 7 ids, but 5 in .*x.mindrecord"
    ):
        next(iter(BatchIterator(dataset, 2, shuffle=False)))


def test_records_with_different_lengths(tmp_path):
    with RecordWriter(tmp_path / "x.mindrecord", ["input_ids"]) as writer:
        for length in (5, 5, 5, 6):
            writer.write({"input_ids": np.zeros(length, np.int32)})
    batches = BatchIterator(RecordDataset(tmp_path), 2, shuffle=False)
    iterator = iter(batches)
    next(iterator)
    with pytest.raises(DataError, match="x.mindrecord record 3: input_ids holds 6 values"):
        next(iterator)
    assert (batches.epoch, batches.step) == (0, 1)


def test_lengths_against_the_model(dataset):
    dataset.check_length(4)
    dataset.check_length(9, exact=False)
    with pytest.raises(
        DataError, match="records hold 5 ids; seq_length 9 needs 10 .*--max_length 10"
    ):
        dataset.check_length(9)
    for exact in (True, False):
        with pytest.raises(DataError, match="set model.model_config.seq_length=4"):
            dataset.check_length(3, exact)


def test_ids_against_the_vocabulary(dataset):
    assert len(numbers(BatchIterator(dataset, 4, vocab_size=23))) == 5
    batches = BatchIterator(dataset, 4, shuffle=False, vocab_size=10)
    iterator = iter(batches)
    next(iterator), next(iterator)
    with pytest.raises(
        DataError, match="c.mindrecord record 1: holds the id 10; .*vocab_size is 10"
    ):
        next(iterator)


def test_int64_columns_become_int32(tmp_path):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "x.mindrecord"))
    writer.add_schema({"input_ids": {"type": "int64", "shape": [-1]}}, "foreign")
    writer.write_raw_data([{"input_ids": np.arange(4)} for _ in range(2)])
    writer.commit()
    assert RecordDataset(tmp_path).read([1])["input_ids"].dtype == np.int32


def test_resuming_late_costs_no_more_than_starting(records, tmp_path):
    dataset = RecordDataset(records(tmp_path / "x.mindrecord", 30_000))
    assert dataset.row_length == 5

    def seconds(state):
        batches = BatchIterator(dataset, 8, seed=1)
        batches.load_state({**batches.state(), **state})
        start = time.perf_counter()
        next(iter(batches))
        return time.perf_counter() - start

    at_start = min(seconds({}) for _ in range(3))
    late = min(seconds({"epoch": 10**6, "step": 3700}) for _ in range(3))
    # Reading on to that position would take 29,600 records, some 50 times as long as the start.
    assert late < 3 * at_start + 0.05


def test_a_column_with_one_value_a_record(tmp_path):
    path = tmp_path / "x.mindrecord"
    with RecordWriter(path, ("input_ids", "labels")) as writer:
        for k in range(7):
            writer.write({"input_ids": np.full(5, k, np.int32), "labels": np.array([k], np.int32)})
    records = RecordDataset(path, single=("labels",))
    assert records.values("labels").tolist() == list(range(7))
    assert records.first(3).values("labels").tolist() == [0, 1, 2]
    assert records.read([4, 2])["labels"].tolist() == [[4], [2]]
    seen = []
    batches = BatchIterator(
        records, 3, seed=1, check=lambda batch, rows: seen.append(rows.tolist())
    )
    read = [batch["labels"][:, 0].tolist() for batch in batches]
    assert seen == read and len(read) == 2
    with pytest.raises(DataError, match="record 0: labels holds 1 values, must hold 5"):
        RecordDataset(path).read([0])
    with pytest.raises(DataError, match="record 0: input_ids holds 5 values, must hold 1;"):
        RecordDataset(path, ("labels", "input_ids"), single=("labels", "input_ids")).read([0])


def test_segments_are_read_wherever_they_are(records, tmp_path):
    columns = ("input_ids", "labels", "segment_ids")
    path = records(tmp_path / "x.mindrecord", 4, columns=columns)
    assert RecordDataset(path).columns == columns
    found = RecordDataset(path, ["input_ids", "labels"])
    assert found.columns == columns
    assert found.read([3])["segment_ids"].tolist() == [[3] * 5]


def test_files_with_and_without_segments(records, tmp_path):
    records(tmp_path / "x.mindrecord", 4)
    records(tmp_path / "y.mindrecord", 4, columns=("input_ids", "segment_ids"))
    for columns in (None, ["input_ids"]):
        with pytest.raises(DataError, match="x.mindrecord: has no column segment_ids"):
            RecordDataset(tmp_path, columns)
