"""Text classification from records to answers, as users start it: exact, resumable, honest."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core import AutoModel, LmConfig, Trainer
from lm_core.cli import main
from lm_core.config.load import dump_run
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import CheckpointError, ConfigError, DataError
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_core.train.callbacks import Callback
from lm_gpt2 import SPEC

COLUMNS = ("input_ids", "attention_mask", "labels")
ROWS, LENGTH, CLASSES = 19, 16, 3


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> dict[str, Path]:
    """Rows of unequal lengths whose class is their last id modulo 3."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(3)
    files = {}
    for name, count in (("train", ROWS), ("held_out", 13)):
        files[name] = folder / f"{name}.mindrecord"
        with RecordWriter(files[name], COLUMNS) as writer:
            for _ in range(count):
                real = int(rng.integers(1, LENGTH + 1))
                ids = np.where(np.arange(LENGTH) < real, rng.integers(1, 60, LENGTH), 0)
                writer.write(row(ids, real, ids[real - 1] % CLASSES))
    return files


def row(ids, real: int, label: int) -> dict[str, np.ndarray]:
    mask = np.arange(len(ids)) < real
    columns = (ids, mask, [label])
    return {n: np.asarray(c).astype(np.int32) for n, c in zip(COLUMNS, columns, strict=True)}


@pytest.fixture
def make(labelled, sizes, tmp_path, change):
    """`make(output, key=value, ...)` -> a Trainer; dotted keys with __ for the dot."""

    def build(output: str = "out", model: dict | None = None, **changes) -> Trainer:
        run = {
            "base": "gpt2_txtcls", "output_dir": str(tmp_path / output), "seed": 5,
            "model": {"model_config": {
                **sizes, "num_labels": CLASSES, "num_layers": 1, **(model or {})
            }},
            "runner_config": {"epochs": 2, "batch_size": 4},
            "lr_schedule": {"type": "constant", "learning_rate": 0.01, "lr_end": 0.0},
            "train_dataset": {"data_loader": {"dataset_dir": str(labelled["train"])}},
            "eval_dataset": {"data_loader": {"dataset_dir": str(labelled["held_out"])}},
            "callbacks": [{"type": "CheckpointMonitor", "save_checkpoint_steps": 3}],
        }  # fmt: skip
        return Trainer(change(run, changes))

    return build


def history(trainer: Trainer) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    path = Path(trainer.run.output_dir) / "log" / "rank_0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "records_per_second"} for line in lines]


def body_of(sizes: dict) -> dict:
    return {name: value for name, value in sizes.items() if name != "preset"} | {"num_layers": 1}


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def end_step(self, loop) -> None:
        if loop.steps == self.step:
            os.kill(os.getpid(), signal.SIGINT)


OPTIONS = {
    "evaluation": {"do_eval": True, "eval_step_interval": 2},
    "accumulation": {"runner_config__gradient_accumulation_steps": 2,
                     "recompute_config": {"recompute": True}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_resumed_is_never_stopped(make, name):
    """Dropout on, in the middle of an epoch, over a last batch that is short."""
    options = {**OPTIONS[name], "runner_config__epochs": 3 if name == "accumulation" else 2}
    whole = make("whole", **options)
    last = whole.train()
    stopped = make("parts", **options)
    stopped.callbacks = [StopAfter(4)]
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = make("parts", resume_training=True, **options)
    assert resumed.train().name == last.name
    assert history(resumed) == history(whole)
    assert_same(tiny.weights(resumed.network), tiny.weights(whole.network))
    steps = [line for line in history(whole) if "loss" in line]
    size = 8 if name == "accumulation" else 4
    epoch = [size] * (ROWS // size) + [ROWS % size]
    assert [line["records"] for line in steps] == epoch * whole.run.runner_config.epochs
    scores = [line for line in history(whole) if "eval_accuracy" in line]
    assert len(scores) == (5 if name == "evaluation" else 0)
    if scores:
        found = whole.evaluate()["Accuracy"]
        assert scores[-1]["eval_loss"] == pytest.approx(found["loss"], rel=1e-6)
        assert scores[-1]["eval_accuracy"] == found["accuracy"]


NO_DROPOUT = dict.fromkeys(
    ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate"), 0.0
)


@pytest.mark.slow
def test_eight_at_once_are_eight_one_by_one(make):
    """Every row counts alike, in the short last batch too (19 = 8 + 8 + 3)."""
    runs = []
    for name, batch, parts in (("a", 8, 1), ("b", 1, 8)):
        trainer = make(
            name, model=NO_DROPOUT, optimizer={"type": "sgd"}, runner_config__batch_size=batch,
            runner_config__gradient_accumulation_steps=parts,
        )  # fmt: skip
        trainer.train()
        runs.append((history(trainer), tiny.weights(trainer.network)))
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["records"] == other["records"]
    for name, array in runs[0][1].items():
        np.testing.assert_allclose(array, runs[1][1][name], rtol=0, atol=1e-6, err_msg=name)


def test_the_first_loss_is_that_of_numpy(make, labelled):
    """All rows in one batch: the mean over rows of -log softmax(logits of the row alone)."""
    trainer = make(model=NO_DROPOUT, runner_config__batch_size=32, runner_config__max_steps=1)
    trainer.train()
    start = make("again", model=NO_DROPOUT)
    model = AutoModel.from_config(start.run.model.config, seed=start.run.seed)
    expected = by_rows(model, labelled["train"])
    assert history(trainer)[0]["loss"] == pytest.approx(expected["loss"], abs=5e-6)
    assert history(trainer)[0]["records"] == ROWS


def by_rows(model, path: Path) -> dict[str, float]:
    """Loss and accuracy, each row alone and without its padding."""
    losses, right = [], 0
    records = RecordDataset(path, single=("labels",))
    for columns in records.stream(range(len(records))):
        ids = columns["input_ids"][columns["attention_mask"] == 1].tolist()
        logits = model.classify([ids])[0].astype(np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[columns["labels"][0]])
        right += int(logits.argmax() == columns["labels"][0])
    return {"loss": float(np.mean(losses)), "accuracy": right / len(losses)}


@pytest.mark.slow
def test_evaluation_counts_every_row_once(make, labelled):
    trainer = make()
    trainer.train()
    expected = by_rows(trainer.network, labelled["held_out"])
    for size in (1, 4, 32):
        trainer.run.runner_config.batch_size = size
        found = trainer.evaluate()
        assert list(found) == ["Accuracy"]
        assert found["Accuracy"]["loss"] == pytest.approx(expected["loss"], abs=2e-6)
        assert found["Accuracy"]["accuracy"] == expected["accuracy"]


@pytest.mark.slow
def test_a_language_model_is_made_a_classifier(make, sizes, tmp_path, caplog):
    """Fine-tuning keeps its body and says that the head is new; nothing else invents one."""
    body = tiny.model(SPEC, **body_of(sizes))
    tiny.write_hf(body, SPEC, tmp_path / "lm")
    trainer = make(lr_schedule__learning_rate=1e-12, load_checkpoint=str(tmp_path / "lm"))
    with pytest.raises(CheckpointError, match="lacks score.weight, it is a language model"):
        trainer.evaluate()
    with caplog.at_level("WARNING", logger="lm_core"):
        last = trainer.finetune()
    assert "score.weight is new and random (seed 5)" in caplog.text
    ours, theirs = tiny.weights(trainer.network), tiny.weights(body)
    assert ours.keys() - theirs.keys() == {"score.weight"}
    assert all(np.abs(ours[name] - theirs[name]).max() < 1e-9 for name in theirs)
    caplog.clear()
    assert_same(tiny.weights(AutoModel.from_pretrained(last)), ours)
    make("more", runner_config__max_steps=1).finetune(last)
    assert "random" not in caplog.text
    with pytest.raises(CheckpointError, match=r"score.weight is \[16, 3\] and must be \[16, 4\]"):
        make("four", model={"num_labels": 4}).finetune(last)
    with pytest.raises(CheckpointError, match="unknown tensor: score.weight"):
        AutoModel.from_pretrained(last, task="text_generation")


def test_the_task_is_what_the_run_or_the_caller_says(make, sizes, tmp_path):
    run = LmConfig("gpt2_txtcls")
    assert run.model.config.is_classifier and run.trainer.type == "text_classification"
    assert LmConfig("gpt2").model.config.task == "text_generation"
    written = tmp_path / "r.yaml"
    written.write_text(dump_run(run))
    assert dump_run(LmConfig(written)) == dump_run(run)
    by_arch = {"model": {"arch": {"type": "GPT2ForSequenceClassification"}}}
    assert LmConfig({**by_arch, "trainer": {"model_name": "gpt2"}}).model.config.is_classifier
    card = {"trainer": {"type": "TextClassificationTrainer", "model_name": "gpt2"}}
    assert LmConfig(card).model.config.is_classifier
    assert Trainer(task="text_classification", model="gpt2").run.model.config.is_classifier
    assert Trainer(task="text_classification", model="gpt2_txtcls").run.trainer.type == (
        "text_classification"
    )
    saved = make("x", runner_config__max_steps=1).train()
    assert Trainer(model=saved).run.model.config.is_classifier
    body = tiny.model(SPEC, **body_of(sizes))
    body.save_pretrained(tmp_path / "lm")
    kept = Trainer(make("y").run, model=tmp_path / "lm").run.model.config
    assert kept.is_classifier and kept.num_labels == CLASSES
    with pytest.raises(ConfigError, match="task: text_generation is given for a run of text_cl"):
        Trainer(make("z").run, task="text_generation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"type": "text_generation"}}, "does not fit the network"),
        ({"model": {"model_config": {"task": "text_generation"}}}, "does not fit trainer.type"),
        ({"model": {"model_config": {"num_labels": 1}}}, "num_labels: 1 leaves nothing to tell"),
        ({"model": {"model_config": {"label_names": ["a"]}}}, "label_names: are 1 and num_labels"),
    ],
)
def test_contradictions_in_a_run(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        LmConfig({"base": "gpt2_txtcls", **changes})
    assert len(error.value.problems) == 1


def write(path: Path, *rows: dict[str, np.ndarray]) -> str:
    with RecordWriter(path, tuple(rows[0])) as writer:
        for one in rows:
            writer.write(one)
    return str(path)


def test_records_that_do_not_fit(make, data, labelled, tmp_path, caplog):
    """One line with the record, before anything is computed."""
    ids = np.arange(1, LENGTH + 1)
    good = [row(ids, 5, k % CLASSES) for k in range(5)]
    bad_mask = row(ids, 5, 1) | {"attention_mask": np.array([1, 0] * 8, np.int32)}
    cases = {
        "label": ([*good, row(ids, 5, 3)], "record 5: the label is 3; must be 0 to 2; set .*num_l"),
        "minus": ([*good, row(ids, 5, -1)], "record 5: the label is -1"),
        "mask": ([*good, bad_mask], "record 5: attention_mask must be ones at the tokens"),
        "empty": ([*good, row(ids, 0, 1)], "record 5: attention_mask must be ones"),
        "long": ([row(np.arange(17), 5, 1)], "records hold 17 ids; seq_length 16 is the most"),
        "ids": ([*good, row(ids + 60, 5, 1)], "record 5: holds the id 61"),
    }
    for name, (rows, message) in cases.items():
        path = write(tmp_path / f"{name}.mindrecord", *rows)
        with pytest.raises(DataError, match=message) as error:
            make(runner_config__batch_size=8, train_dataset__data_loader__dataset_dir=path).train()
        assert len(error.value.problems) == 1
        with pytest.raises(DataError, match=message):
            trainer = make(eval_dataset__data_loader__dataset_dir=path)
            trainer.run.runner_config.batch_size = 8
            trainer.network = AutoModel.from_config(trainer.run.model.config)
            trainer.evaluate()
    with pytest.raises(DataError, match="has no column labels; text classification needs"):
        make(train_dataset={"data_loader": {"dataset_dir": str(data["train"])}}).train()
    few = write(tmp_path / "few.mindrecord", *[row(ids, 5, 1)] * 4)
    with caplog.at_level("WARNING", logger="lm_core"):
        make(train_dataset__data_loader__dataset_dir=few, runner_config__max_steps=1).train()
    assert "has no record of class 0, 2; is num_labels 3 right?" in caplog.text
    with pytest.raises(DataError, match="records hold one label each; must be records of a lang"):
        make(trainer={"type": "text_generation"}, model__arch__type="GPT2LMHeadModel").train()


@pytest.mark.slow
def test_it_learns_the_sentiment_of_reviews(tmp_path):
    """From random weights, on a part of SST-2, judged by all of dev.tsv (51 % are positive)."""
    folder = DATA
    if not (folder / "sst2" / "train.tsv").is_file():
        pytest.skip(f"{folder}/sst2 is not here")
    for name in ("train", "dev"):
        words = ["--dataset_name", "sst_2", "--input_file", str(folder / "sst2" / f"{name}.tsv")]
        words += ["--output_file", str(tmp_path / f"{name}.mindrecord"), "--max_length", "32"]
        assert main(["preprocess", "gpt2", "txtcls", *words, "--tokenizer", str(folder / "gpt2"),
                     "--num_process", "1"]) == 0  # fmt: skip
    trainer = Trainer(
        {
            "base": "gpt2_txtcls",
            "output_dir": str(tmp_path / "out"),
            "model": {"model_config": {
                "preset": "gpt2_tiny", "hidden_size": 32, "num_layers": 1, "num_heads": 2,
                "seq_length": 32, "attention_dropout_rate": 0.0,
            }},
            "runner_config": {"batch_size": 64, "max_steps": 300},
            "lr_schedule": {"learning_rate": 5e-3, "lr_end": 5e-4, "warmup_steps": 20},
            "optimizer": {"weight_decay": 0.01},
        },
        train_dataset=tmp_path / "train.mindrecord",
        eval_dataset=tmp_path / "dev.mindrecord",
        tokenizer=folder / "gpt2",
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()["Accuracy"]
    assert found["accuracy"] > 0.7 and found["loss"] < math.log(2) - 0.1
    texts = ["a wonderful , moving film", "a dull and stupid mess"]
    assert [item["label"] for item in trainer.predict(texts)] == ["LABEL_1", "LABEL_0"]


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_and_a_head_are_trained_together(make, sizes, tmp_path, alone):
    """The head is saved with the adapter; both go on, and answer, from the run's output."""
    fields = {key: value for key, value in sizes.items() if key != "preset"}
    base = tmp_path / "base"
    tiny.model(SPEC, **{**fields, "num_layers": 1}).save_pretrained(base)
    pet = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    changes = {
        "model": {"pet_config": pet}, "load_checkpoint": str(base),
        "callbacks": [{"type": "CheckpointMonitor", "save_checkpoint_steps": 3,
                       "save_trainable_params": alone}],
    }  # fmt: skip
    trainer = make("whole", **changes)
    last = trainer.finetune(base)
    trained = {n for n, p in trainer.network.named_parameters().items() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["score.weight"]
    assert (last / "model.safetensors").exists() != alone
    make("part", runner_config__max_steps=3, **changes).finetune(base)
    resumed = make("part", resume_training=True, **changes).finetune(base)
    for name, array in tiny.weights(trainer.network).items():
        loaded = tiny.weights(AutoModel.from_pretrained(resumed))[name]
        np.testing.assert_array_equal(loaded, array, err_msg=name)
    expected = trainer.evaluate()
    assert make("again", **changes).evaluate(resumed) == expected
