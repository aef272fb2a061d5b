"""Training from records to checkpoints, as users start it: exact, resumable, safe."""

from __future__ import annotations

import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lm_core import AutoModel, Trainer
from lm_core.checkpoint import atomic
from lm_core.errors import CheckpointError, ConfigError, DataError, LmError
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_core.train.callbacks import Callback
from lm_core.train.nonfinite import TrainingError

pytestmark = pytest.mark.slow
DROPOUTS = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")


@pytest.fixture(scope="module")
def make_in(data, sizes, change):
    """`make_in(folder, output, key=value, ...)` -> a Trainer; keys with __ for the dot."""

    def build(folder: Path, output: str = "out", model: dict | None = None, **changes) -> Trainer:
        run = {
            "base": "gpt2_tiny",
            "output_dir": str(folder / output),
            "seed": 5,
            "model": {"model_config": {**sizes, **(model or {})}},
            "runner_config": {"epochs": 3, "batch_size": 4, "max_steps": 8},
            "lr_schedule": {"type": "cosine", "learning_rate": 0.01, "warmup_ratio": 0.1},
            "train_dataset": {"data_loader": {"dataset_dir": str(data["train"])}},
            "eval_dataset": {"data_loader": {"dataset_dir": str(data["held_out"])}},
            "callbacks": [
                {
                    "type": "CheckpointMonitor", "prefix": "tiny",
                    "save_checkpoint_steps": 3, "keep_checkpoint_max": 5,
                }
            ],
        }  # fmt: skip
        return Trainer(change(run, changes))

    return build


@pytest.fixture
def make(make_in, tmp_path):
    """`make(output, key=value, ...)` -> a Trainer of a folder of this test."""
    return partial(make_in, tmp_path)


@pytest.fixture(scope="module")
def plain(make_in, tmp_path_factory):
    """What other runs are held against: a Trainer that has trained. Nobody changes it."""
    trainer = make_in(tmp_path_factory.mktemp("plain"), "plain")
    trainer.train()
    return trainer


def last_of(trainer: Trainer) -> Path:
    """The newest checkpoint."""
    return Path(trainer.run.output_dir) / "checkpoint/rank_0/tiny-8"


def history(trainer: Trainer, *names: str) -> list[list]:
    """The lines of metrics.jsonl without what depends on the clock."""
    path = Path(trainer.run.output_dir) / "log" / "rank_0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        [line.get(name) for name in ("step", "loss", "lr", "grad_norm", *names)] for line in lines
    ]


class StopAfter(Callback):
    """Asks for a stop as a user would, at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def end_step(self, loop) -> None:
        if loop.steps == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_same_run_twice_is_bit_identical(make, plain):
    """Weights and history, with dropout; another seed is another run, also seed 0."""
    first, again = make("first", seed=0), make("again", seed=0)
    for trainer in (first, again):
        trainer.train()
    assert history(again) == history(first)
    assert_same(tiny.weights(again.network), tiny.weights(first.network))
    assert history(first) != history(plain)
    losses = [line[1] for line in history(first)]
    assert losses[-1] < losses[0]


OPTIONS = {
    "plain": {},
    "dynamic scale": {
        "runner_wrapper": {
            "scale_sense": {
                "type": "DynamicLossScaleUpdateCell", "loss_scale_value": 1024,
                "scale_factor": 2, "scale_window": 2,
            }
        }
    },
    "accumulation, fixed scale, saved in the background": {
        "runner_config__gradient_accumulation_steps": 2,
        "runner_wrapper": {"scale_sense": 128},
        "callbacks": [
            {
                "type": "CheckpointMonitor", "prefix": "tiny", "save_checkpoint_steps": 1,
                "async_save": True,
            }
        ],
    },
    "evaluation and recompute": {
        "do_eval": True, "eval_step_interval": 2, "recompute_config": {"recompute": True},
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "step"), [*zip(OPTIONS, (4, 5, 3, 4), strict=True)])
def test_resumed_is_never_stopped(make, plain, name, step):
    """With dropout, in a new model and optimizer: the same bits, history and files.

    An epoch has 5 steps, with accumulation 2: they stop in the middle of one and at its end, and
    all go on over the end of another. The run that is never stopped waits for its checkpoints.
    """
    waiting = {key: value for key, value in OPTIONS[name].items() if key != "callbacks"}
    whole = make("whole", **waiting) if waiting else plain
    last = whole.train() if waiting else last_of(plain)
    stopped = make("parts", **OPTIONS[name])
    stopped.callbacks = [StopAfter(step)]
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = make("parts", resume_training=True, **OPTIONS[name])
    assert resumed.train().name == last.name
    assert history(resumed, "eval_loss", "loss_scale") == history(whole, "eval_loss", "loss_scale")
    assert_same(tiny.weights(resumed.network), tiny.weights(whole.network))
    for file in ("model.safetensors", "optimizer.safetensors"):
        parts = Path(resumed.run.output_dir) / "checkpoint/rank_0" / last.name / file
        assert parts.read_bytes() == (last / file).read_bytes()


def test_resume_from_a_step_and_past_a_damaged_checkpoint(make, caplog):
    trainer = make(runner_config__max_steps=6)
    trainer.train()
    folder = Path(trainer.run.output_dir) / "checkpoint" / "rank_0"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-3", "tiny-6"]
    expected = tiny.weights(trainer.network)
    damaged = folder / "tiny-6" / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    os.chmod(damaged, 0o644)
    damaged.write_bytes(content)
    again = make(runner_config__max_steps=6, resume_training=True)
    with caplog.at_level("WARNING", logger="lm_core"):
        again.train()
    assert "optimizer.safetensors" in caplog.text and "checkpoint before it" in caplog.text
    assert_same(tiny.weights(again.network), expected)
    from_step = make(runner_config__max_steps=6, resume_training="3")
    from_step.train()
    assert_same(tiny.weights(from_step.network), expected)
    with pytest.raises(CheckpointError, match="step 4; use one that it has: 6, 3"):
        make(resume_training="4").train()


def test_a_changed_run_is_not_resumed(make):
    make(runner_config__max_steps=3).train()
    with pytest.raises(CheckpointError, match="seed was 5, now it is 6"):
        make(resume_training=True, seed=6).train()


def test_a_new_run_sets_an_old_one_aside(make, caplog):
    first = make(runner_config__max_steps=3)
    kept = tiny.weights(AutoModel.from_pretrained(first.train()))
    with caplog.at_level("WARNING", logger="lm_core"):
        make(runner_config__max_steps=2, seed=9).train()
    checkpoint = Path(first.run.output_dir) / "checkpoint"
    assert [path.name for path in (checkpoint / "rank_0").iterdir()] == ["tiny-2"]
    old = checkpoint / ".earlier-1" / "rank_0" / "tiny-3"
    assert str(old.parent) in caplog.text
    assert_same(tiny.weights(AutoModel.from_pretrained(old)), kept)


def test_accumulated_micro_batches_are_one_batch(make):
    """Token-weighted: 8 x 1 record gives what 1 x 8 records give, though records are unequal."""
    still = {**dict.fromkeys(DROPOUTS, 0.0), "num_layers": 2}
    results = []
    for batch, parts in ((8, 1), (1, 8), (2, 4)):
        trainer = make(
            f"{batch}", model=still, runner_config__batch_size=batch,
            runner_config__gradient_accumulation_steps=parts, runner_config__max_steps=3,
        )  # fmt: skip
        trainer.train()
        results.append((tiny.weights(trainer.network), history(trainer)))
    for weights, lines in results[1:]:
        np.testing.assert_allclose(
            np.array(lines, float)[:, 1:], np.array(results[0][1], float)[:, 1:], rtol=2e-6
        )
        for name, value in weights.items():
            # The exact gradient of this bias is 0: softmax does not see it. Adam blows up rounding.
            if not name.endswith("attention.k.bias"):
                np.testing.assert_allclose(value, results[0][0][name], rtol=0, atol=1e-6)


def test_recompute_changes_nothing(make, plain):
    again = make(recompute_config={"recompute": True})
    again.train()
    losses = [[line[1] for line in history(trainer)] for trainer in (plain, again)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_evaluation_is_the_same_for_every_batch_size(plain, data, monkeypatch):
    """And equal to what the logits say, token by token, in float64."""
    found = []
    for size in (1, 4, 5, 100):
        monkeypatch.setattr(plain.run.runner_config, "batch_size", size)
        found.append(plain.evaluate()["PerplexityMetric"])
    for result in found:
        assert result["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
        assert result["PPL"] == pytest.approx(math.exp(result["loss"]))
    assert found[0]["loss"] == pytest.approx(_exact_loss(plain.network, data["held_out"]), rel=1e-5)


def _exact_loss(model, path: Path) -> float:
    from mindspore import Tensor

    from lm_core.data.pipeline import BatchIterator, RecordDataset

    losses = []
    model.set_train(False)
    records = BatchIterator(RecordDataset(path), 1, shuffle=False, drop_remainder=False)
    for row in records:
        ids, mask = row["input_ids"], row["attention_mask"]
        logits = model(Tensor(ids[:, :-1])).asnumpy()[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        picked = -log_p[np.arange(len(logits)), ids[0, 1:]]
        losses += picked[mask[0, 1:] == 1].tolist()
    return float(np.mean(losses))


def test_evaluation_on_the_way_does_not_disturb(make, plain):
    with_it = make("a", do_eval=True, eval_step_interval=2)
    with_it.train()
    assert_same(tiny.weights(with_it.network), tiny.weights(plain.network))
    evaluated = [line for line in history(with_it, "eval_loss", "eval_ppl") if line[4] is not None]
    assert [line[0] for line in evaluated] == [2, 4, 6, 8]
    assert evaluated[-1][4] == pytest.approx(with_it.evaluate()["PerplexityMetric"]["loss"])


def test_a_checkpoint_is_a_model_directory(plain):
    last = last_of(plain)
    assert not atomic.verify(last)
    assert {"config.json", "model.safetensors", "run.yaml", "training.json"} <= set(
        os.listdir(last)
    )
    assert_same(tiny.weights(AutoModel.from_pretrained(last)), tiny.weights(plain.network))
    from_run = AutoModel.from_pretrained(plain.run.output_dir)
    assert_same(tiny.weights(from_run), tiny.weights(plain.network))


def test_old_checkpoints_are_deleted(make):
    callbacks = [
        {"type": "CheckpointMonitor", "save_checkpoint_steps": 1, "keep_checkpoint_max": 2}
    ]
    trainer = make(callbacks=callbacks)
    trainer.train()
    folder = Path(trainer.run.output_dir) / "checkpoint" / "rank_0"
    assert sorted(path.name for path in folder.iterdir()) == ["CKP-7", "CKP-8"]


def test_a_full_disk_does_not_end_training(make, monkeypatch, caplog):
    """A checkpoint on the way is lost and said to be; older ones stay, the last is written."""
    trainer = make()
    real, calls = atomic.require_space, []

    def full_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise CheckpointError("disk: is full; make room")
        return real(*args)

    monkeypatch.setattr(atomic, "require_space", full_once)
    with caplog.at_level("ERROR", logger="lm_core"):
        trainer.train()
    assert "CHECKPOINT NOT SAVED at step 6: disk: is full" in caplog.text
    folder = Path(trainer.run.output_dir) / "checkpoint" / "rank_0"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-3", "tiny-8"]


def test_a_loss_that_is_not_finite_stops_the_run(make):
    with pytest.raises(TrainingError, match=r"step \d+: the .* is (nan|inf).*learning_rate"):
        make(
            optimizer={"type": "sgd"},
            lr_schedule__learning_rate=1e30,
            lr_schedule__warmup_ratio=0.0,
            runner_wrapper={"use_clip_grad": False},
        ).train()


def test_steps_that_are_not_finite_can_be_left_out(make, tmp_path):
    """The list beside the log names their records; the next run starts a list of its own."""
    changes = {
        "optimizer": {"type": "sgd"},
        "lr_schedule__learning_rate": 1e30,
        "lr_schedule__warmup_ratio": 0.0,
        "runner_config__max_steps": 4,
    }
    wrapper = {"use_clip_grad": False, "nan_policy": "skip"}
    make(runner_wrapper=wrapper, **changes).train()
    file = tmp_path / "out" / "log" / "rank_0" / "nonfinite.jsonl"
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    assert steps and steps[-1]["step"] == 4 and len(steps[0]["records"]) == 4
    assert all("train.mindrecord record " in record for record in steps[0]["records"])
    make(runner_config__max_steps=2).train()
    assert not file.exists()


def test_finetune_needs_weights(make, plain):
    with pytest.raises(CheckpointError, match="load_checkpoint: is missing.*pretrain"):
        make().finetune()
    tuned = make("tuned", runner_config__max_steps=2, lr_schedule__learning_rate=0.0001)
    tuned.finetune(str(last_of(plain)))
    first = history(tuned)[0][1]
    assert first < history(plain)[0][1]
    again = make("again", runner_config__max_steps=2, load_checkpoint=plain.run.output_dir)
    again.run.lr_schedule.learning_rate = 0.0001
    again.finetune()
    assert history(again)[0][1] == first


def test_names_of_the_cards_train(make):
    trainer = make(
        optimizer={"type": "FP32StateAdamWeightDecay", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                   "weight_decay": 0.1, "learning_rate": 0.01},
        lr_schedule={"type": "CosineWithWarmUpLR", "learning_rate": 0.01, "lr_end": 0.001,
                     "warmup_steps": 2, "warmup_ratio": 0.0, "total_steps": -1},
    )  # fmt: skip
    trainer.train()
    rates = [line[2] for line in history(trainer)]
    assert rates[:3] == pytest.approx([0.0, 0.005, 0.01])
    assert rates[2] > rates[5] > rates[7] > 0.001


def test_what_is_wrong_is_said_before_anything_is_computed(make, data, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        make(train_dataset={"data_loader": {"dataset_dir": str(tmp_path / "nowhere")}}).train()
    with pytest.raises(ConfigError, match="train_dataset.data_loader.dataset_dir: is missing"):
        make(train_dataset={"data_loader": {"dataset_dir": ""}}).train()
    with pytest.raises(LmError, match="17.*|seq_length"):
        make(model={"seq_length": 8}).train()
    with pytest.raises(DataError, match="vocab"):
        make(model={"vocab_size": 50}).train()
    with pytest.raises(CheckpointError, match="load_checkpoint: is missing"):
        make().evaluate()
    with pytest.raises(ConfigError, match="pet_method"):
        Trainer(model="gpt2", pet_method="prefix")
    with pytest.raises(ConfigError, match="task: 'text_generatoin'"):
        Trainer(task="text_generatoin", model="gpt2")
