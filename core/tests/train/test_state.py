"""Training checkpoints: what they hold, finding one, and going on from it bit by bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from lm_core.checkpoint import atomic, saved
from lm_core.errors import CheckpointError, DataError
from lm_core.train import state
from lm_core.train.callbacks import Callback, CheckpointMonitor, MetricsFile
from lm_core.train.loss_scale import LossScale


def all_values(loop) -> dict[str, bytes]:
    found = {**loop.state.model.named_parameters(), **loop.state.step.optimizer.state()}
    return {name: parameter.asnumpy().tobytes() for name, parameter in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def made(make_loop, folder):
    """Checkpoints of each of 7 steps, over the end of an epoch of 5, made once."""

    def make(total=7, **options):
        options = {"accumulation": 2, **options}
        scale = LossScale(8.0, dynamic=True, window=2)
        return make_loop(total, scale=scale, **options)

    if not saved.checkpoints(folder):
        loop = make(metrics=folder / "m.jsonl")
        loop.callbacks = [
            MetricsFile(folder / "m.jsonl"), CheckpointMonitor(folder, every_steps=1, keep=99)
        ]  # fmt: skip
        loop.run()
    return make


@pytest.mark.parametrize("step", [1, 4, 5, 6])
def test_from_any_step_on_it_is_the_same_run(made, folder, tmp_path, records_of, step):
    """In a new model and a new optimizer: weights, state, scale, position and history."""
    seen = records_of()
    loop = made(metrics=tmp_path / "m.jsonl", callbacks=[MetricsFile(tmp_path / "m.jsonl"), seen])
    loop.state.load(folder / f"CKP-{step}")
    assert (loop.steps, loop.state.data.epoch, loop.state.data.step) == (step, *divmod(step, 5))
    loop.run()
    last = made()
    last.state.load(folder / "CKP-7")
    assert all_values(loop) == all_values(last)
    assert loop.state.counters() == last.state.counters()
    ours, whole = (
        [json.loads(line) for line in (place / "m.jsonl").read_text().splitlines()]
        for place in (tmp_path, folder)
    )
    for line in ours + whole:
        del line["tokens_per_second"]
    assert ours == whole
    assert [record["step"] for record in seen.steps] == list(range(step + 1, 8))


def test_resuming_reads_no_data(made, folder, monkeypatch):
    from lm_core.data.pipeline import RecordDataset

    loop = made()
    monkeypatch.setattr(RecordDataset, "stream", lambda *_: pytest.fail("a record was read"))
    loop.state.load(folder / "CKP-6")


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_resumed_run_reads_no_record_again(made, folder, monkeypatch, step):
    """So it starts as quickly at any step: it reads what it trains, and one for the length."""
    from lm_core.data import pipeline

    read, iterate = [], pipeline.iterate

    def count(*args):
        for row in iterate(*args):
            read.append(row)
            yield row

    monkeypatch.setattr(pipeline, "iterate", count)
    loop = made()
    loop.state.load(folder / f"CKP-{step}")
    loop.run()
    assert len(read) == (7 - step) * 4 + 1


def test_saved_in_the_background_it_is_the_same_checkpoint(made, folder, tmp_path, monkeypatch):
    """Every step is saved, and written when the steps after it have long changed the weights."""
    real = atomic.require_space

    def late(*args):
        time.sleep(0.05)
        real(*args)

    made()
    monkeypatch.setattr(atomic, "require_space", late)
    metrics = tmp_path / "m.jsonl"
    monitor = CheckpointMonitor(tmp_path, every_steps=1, keep=99, background=True)
    ahead = []

    class Look(Callback):
        def end_step(self, loop):
            ahead.append(monitor.last is None or saved.step_of(monitor.last) < loop.steps)

    loop = made(metrics=metrics, callbacks=[MetricsFile(metrics), monitor, Look()])
    loop.run()
    assert all(ahead[:6])
    for step in range(1, 8):
        for name in ("model.safetensors", "optimizer.safetensors", "training.json", "config.json"):
            ours, theirs = (place / f"CKP-{step}" / name for place in (tmp_path, folder))
            assert ours.read_bytes() == theirs.read_bytes(), ours
        history = (tmp_path / f"CKP-{step}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in history] == list(range(1, step + 1))
        assert not atomic.verify(tmp_path / f"CKP-{step}")


def test_files(folder, made):
    made()
    names = {"config.json", "model.safetensors", "optimizer.safetensors", "training.json",
             "run.yaml", "metrics.jsonl", "manifest.json"}  # fmt: skip
    assert set(os.listdir(folder / "CKP-4")) == names
    assert (folder / "CKP-4" / "run.yaml").read_text() == "seed: 5\n"
    assert len((folder / "CKP-4" / "metrics.jsonl").read_text().splitlines()) == 4
    assert state.read_counters(folder / "CKP-4")["step"] == 4


def test_what_is_wanted(made, folder, tmp_path):
    made()
    run = tmp_path / "run" / "checkpoint" / "rank_0"
    shutil.copytree(folder, run)
    inner, newest = run / "CKP-3", run / "CKP-7"
    assert state.find(False, run) is None
    assert state.find("", run) is None
    assert state.find(True, tmp_path / "nothing") is None
    assert state.find(True, run) == newest
    assert state.find("3", run) == inner
    assert state.find(str(inner), tmp_path) == inner
    for place in (run, run.parent, run.parent.parent):
        assert state.find(str(place), tmp_path) == newest
    with pytest.raises(
        CheckpointError, match="has no checkpoint of step 9; use one that it has: 7, 6, 5"
    ):
        state.find("9", run)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9; it has none"):
        state.find("9", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="nothing holds no training checkpoint"):
        state.find(str(tmp_path / "nothing"), run)


def test_hidden_folders_hold_no_checkpoints_of_this_run(made, folder, tmp_path):
    made()
    shutil.copytree(folder / "CKP-2", tmp_path / ".earlier-1" / "rank_0" / "CKP-9")
    shutil.copytree(folder / "CKP-2", tmp_path / "rank_0" / "CKP-2")
    assert saved.newest(tmp_path) == tmp_path / "rank_0" / "CKP-2"


def damage(path: Path, choose: random.Random) -> str:
    """Flips a bit, cuts, empties or deletes a file of a checkpoint. Returns its name."""
    file = choose.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    kind = choose.choice(("flip", "cut", "empty", "gone"))
    file.unlink()
    if kind == "flip":
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[: choose.randrange(len(content))])
    elif kind == "empty":
        file.write_bytes(b"")
    return file.name


@pytest.mark.parametrize("seed", range(40))
def test_the_newest_that_is_undamaged(made, folder, tmp_path, caplog, seed):
    made()
    choose = random.Random(seed)
    for step in (4, 5, 6, 7):
        shutil.copytree(folder / f"CKP-{step}", tmp_path / f"CKP-{step}")
    count = choose.randrange(1, 4)
    names = [damage(tmp_path / f"CKP-{7 - n}", choose) for n in range(count)]
    with caplog.at_level("WARNING", logger="lm_core"):
        assert state.find(True, tmp_path) == tmp_path / f"CKP-{7 - count}"
    *said, last = caplog.messages
    for n, message in enumerate(said):
        assert f"CKP-{7 - n}/{names[n]}" in message and "trying the checkpoint before" in message
    assert len(said) == count and last.startswith(f"using {tmp_path}/CKP-{7 - count}, the newest")


def test_all_are_damaged(made, folder, tmp_path):
    made()
    for step in (3, 4):
        shutil.copytree(folder / f"CKP-{step}", tmp_path / f"CKP-{step}")
        (tmp_path / f"CKP-{step}" / "run.yaml").write_text("changed")
    with pytest.raises(CheckpointError) as caught:
        state.find(True, tmp_path)
    assert len(caught.value.problems) == 2
    with pytest.raises(CheckpointError, match=r"CKP-3/run\.yaml"):
        state.find("3", tmp_path)


def test_what_changed_is_named(made, folder, make_loop):
    other = made()
    other.state.step.seed = 6
    with pytest.raises(CheckpointError, match="seed was 5, now it is 6"):
        other.state.load(folder / "CKP-3")
    with pytest.raises(DataError, match=r"batch"):
        made(batch=2).state.load(folder / "CKP-3")
    with pytest.raises(DataError, match="shuffle"):
        made(shuffle=False).state.load(folder / "CKP-3")


def test_of_another_optimizer(made, folder):
    from lm_core.train.optimizer import Sgd
    from lm_core.train.step import TrainStep, trained_parameters

    loop = made()
    model = loop.state.model
    optimizer = Sgd(trained_parameters(model), momentum=0.9)
    loop.state.step = TrainStep(model, optimizer, accumulation=2, seed=5)
    with pytest.raises(CheckpointError, match=r"optimizer.*lacks sgd\.momentum\.embedding\.weight"):
        loop.state.load(folder / "CKP-3")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not readable"), ('{"step": 1}', "not readable"),
                          ('{"version": 99}', "version 99 is of a later lm")],
)  # fmt: skip
def test_counters_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        state.read_counters(tmp_path)
    with pytest.raises(CheckpointError, match="not readable"):
        state.read_counters(tmp_path / "nowhere")


def test_a_disk_without_room_is_found_before_writing(made, tmp_path, monkeypatch):
    loop = made()
    loop.state.save(tmp_path / "CKP-0")
    before = {path.name: path.read_bytes() for path in (tmp_path / "CKP-0").iterdir()}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(CheckpointError, match="100 B are free here"):
        loop.state.save(tmp_path / "CKP-0")
    assert {path.name: path.read_bytes() for path in (tmp_path / "CKP-0").iterdir()} == before
    assert not atomic.verify(tmp_path / "CKP-0")
    assert os.listdir(tmp_path) == ["CKP-0"]
