"""`pretrain`, `finetune`, `evaluate` from the command line: what they print, keep and refuse."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml

from lm_core import AutoModel, AutoTokenizer, LmConfig, Trainer
from lm_core.checkpoint.io import TOKENIZER_FILES
from lm_core.cli import main
from lm_core.config.load import dump_run
from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a vocabulary, and later with what a first run left in it."""
    folder = tmp_path_factory.mktemp("work")
    Gpt2Tokenizer(*train_bpe([tiny.text(20)], 280)).save_pretrained(folder / "vocabulary")
    return folder


def write_run(path: Path, data, sizes, **changes) -> Path:
    # As many ids as the vocabulary has: its tokens come out of the model.
    run = {
        "base": "gpt2_tiny", "seed": 3,
        "model": {"model_config": {**sizes, "vocab_size": 281, "max_decode_length": 16}},
        "runner_config": {"epochs": 1, "batch_size": 4},
        "train_dataset": {"data_loader": {"dataset_dir": str(data["train"])}},
        "callbacks": [{"type": "CheckpointMonitor", "save_checkpoint_steps": 2}],
        **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture
def trained(workplace, data, sizes, monkeypatch) -> Path:
    """The output of a run of 5 steps, made by the first test that asks for it."""
    monkeypatch.chdir(workplace)
    if not (workplace / "out").exists():
        run = write_run(workplace / "run.yaml", data, sizes)
        words = ["--config", str(run), "--output_dir", "out", "--tokenizer", "vocabulary"]
        assert main(["pretrain", "gpt2", *words]) == 0
    return Path("out")


def problems(capsys, *words: str) -> list[str]:
    """The lines of a command that must fail as a user's mistake."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert lines
    return lines


def test_what_a_run_leaves(trained, workplace):
    checkpoints = trained / "checkpoint" / "rank_0"
    assert sorted(os.listdir(checkpoints)) == ["CKP-2", "CKP-4", "CKP-5"]
    log = trained / "log" / "rank_0"
    stored = (log / "run.yaml").read_text()
    resolved = LmConfig(log / "run.yaml")
    assert dump_run(resolved) == stored
    assert resolved.seed == 3 and resolved.output_dir == "out"
    assert (checkpoints / "CKP-5" / "run.yaml").read_text() == stored
    lines = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    vocabulary = {name for name in TOKENIZER_FILES if (workplace / "vocabulary" / name).exists()}
    assert vocabulary >= {"vocab.json", "merges.txt"}
    for name in vocabulary:
        kept = checkpoints / "CKP-2" / name
        assert kept.read_bytes() == (workplace / "vocabulary" / name).read_bytes()
    text = tiny.text(3)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_evaluate_prints_the_metric_of_the_card(trained, data, capsys):
    """The output of a run says itself which model it holds."""
    found = []
    for size in ("1", "5"):
        words = ["--load_checkpoint", "out", "--eval_dataset_dir", str(data["held_out"])]
        assert main(["evaluate", "gpt2", *words, "--batch_size", size]) == 0
        name, _, values = capsys.readouterr().out.strip().partition(": ")
        assert name == "PerplexityMetric"
        found.append(ast.literal_eval(values)["PerplexityMetric"])
        assert found[-1].keys() == {"loss", "PPL"}
        assert found[-1]["PPL"] == pytest.approx(math.exp(found[-1]["loss"]))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    trainer = Trainer(model="out", eval_dataset=data["held_out"])
    assert trainer.evaluate()["PerplexityMetric"]["loss"] == pytest.approx(found[0]["loss"])


def test_predict_from_the_output_of_a_run(trained, capsys):
    assert main(["predict", "gpt2", "--load_checkpoint", "out", "--predict_data", "the"]) == 0
    (row,) = ast.literal_eval(capsys.readouterr().out)
    assert row["text_generation_text"][0].startswith("the")
    answer = Trainer(model="out").predict(input_data="the", do_sample=False)
    assert answer == [row]


def test_a_complete_run_is_resumed_by_doing_nothing(trained, capsys):
    last = trained / "checkpoint" / "rank_0" / "CKP-5"
    before = {path.name: path.stat().st_ino for path in last.iterdir()}
    words = ["--config", "run.yaml", "--output_dir", "out", "--resume_training", "True"]
    assert main(["pretrain", "gpt2", *words]) == 0
    assert "complete at step 5" in capsys.readouterr().err
    assert {path.name: path.stat().st_ino for path in last.iterdir()} == before


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
@pytest.mark.parametrize("where", ["4", "out/checkpoint/rank_0/CKP-4", "out"])
def test_resume_by_step_checkpoint_or_folder(trained, tmp_path, verb, where):
    """Fine-tuning needs no weights beside those of the checkpoint it goes on from."""
    last = trained / "checkpoint" / "rank_0" / "CKP-5"
    output = Path("out") if where == "4" else tmp_path / "out"
    expected = {path.name: path.read_bytes() for path in last.iterdir()}
    words = ["--config", "run.yaml", "--output_dir", str(output), "--resume_training", where]
    assert main([verb, "gpt2", *words]) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        again = output / "checkpoint" / "rank_0" / "CKP-5" / name
        # From the newest of a complete run nothing is left to do; it is saved where it was asked.
        assert again.read_bytes() == expected[name]
    assert (output / "checkpoint" / "rank_0" / "CKP-5" / "vocab.json").exists()


def test_finetune_goes_on_from_weights_and_keeps_their_vocabulary(trained, tmp_path):
    words = ["--config", "run.yaml", "--load_checkpoint", "out", "--output_dir", str(tmp_path)]
    assert main(["finetune", "gpt2", *words, "lr_schedule.learning_rate=1e-30",
                 "lr_schedule.lr_end=0"]) == 0  # fmt: skip
    tuned = tmp_path / "checkpoint" / "rank_0" / "CKP-5"
    assert (tuned / "vocab.json").read_bytes() == Path("vocabulary/vocab.json").read_bytes()
    ours, theirs = (tiny.weights(AutoModel.from_pretrained(folder)) for folder in (tuned, "out"))
    for name, array in theirs.items():
        assert abs(array - ours[name]).max() < 1e-12


@pytest.mark.slow
def test_finetune_starts_from_weights_of_every_kind(data, sizes, tmp_path):
    """The first loss is the same from each: no kind of source gives other weights in silence."""
    # Seven graphs are compiled, so they have no masks.
    still = {**sizes, **{name: 0.0 for name in sizes if "dropout" in name}}
    fields = {key: value for key, value in still.items() if key != "preset"}
    model = tiny.model(SPEC, **{**fields, "vocab_size": 281})
    native = tmp_path / "native"
    model.save_pretrained(native)
    tiny.write_hf(model, SPEC, tmp_path / "hf")
    words = ["--input", str(native), "--output", str(tmp_path / "ckpt")]
    assert main(["convert", "gpt2", *words, "--format", "mindformers"]) == 0
    run = write_run(tmp_path / "run.yaml", data, still, seed=5)
    out = tmp_path / "out"
    trainer = Trainer(str(run))
    trainer.run.output_dir, trainer.run.runner_config.max_steps = str(out), 1
    trainer.run.lr_schedule.learning_rate, trainer.run.lr_schedule.lr_end = 1e-30, 0.0
    losses = {}
    for source in (
        native, native / "model.safetensors", tmp_path / "hf", tmp_path / "ckpt",
        tmp_path / "ckpt" / "gpt2.ckpt", out / "checkpoint" / "rank_0", out,
    ):  # fmt: skip
        # Once there are checkpoints, another run must not set them aside while it reads them.
        trainer.run.output_dir = str(out if not out.exists() else tmp_path / "next")
        trainer.finetune(source)
        record = Path(trainer.run.output_dir) / "log" / "rank_0" / "metrics.jsonl"
        losses[str(source)] = json.loads(record.read_text().splitlines()[0])["loss"]
    assert len(losses) == 7 and len(set(losses.values())) == 1, losses


def test_all_that_is_missing_is_said_at_once(workplace, data, sizes, tmp_path, capsys):
    dataset = {"data_loader": {"dataset_dir": ""}}
    run = write_run(tmp_path / "r.yaml", data, sizes, train_dataset=dataset, do_eval=True)
    words = ["--config", str(run), "--output_dir", str(tmp_path / "out")]
    lines = problems(capsys, "finetune", "gpt2", *words)
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        "train_dataset.data_loader.dataset_dir", "eval_dataset.data_loader.dataset_dir",
        "load_checkpoint",
    ]  # fmt: skip
    assert "pretrain" in lines[2]
    assert len(problems(capsys, "pretrain", "gpt2", *words)) == 2
    assert len(problems(capsys, "evaluate", "gpt2", *words)) == 2
    lines = problems(capsys, "pretrain", "gpt2", *words, "--resume_training", "7")
    assert len(lines) == 3 and "has no checkpoint of step 7; it has none" in lines[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--batch_size", "23"], "batch_size: 23 is more than the 22 records"),
        (
            ["runner_config.gradient_accumulation_steps=6"],
            "batch_size: 4 x gradient_accumulation_steps 6 x data_parallel 1 is more than the 22",
        ),
        (["model.model_config.vocab_size=60"], "holds the id 60; the model's vocab_size is 60"),
        (["model.model_config.seq_length=32"], "17"),
        (["--train_dataset_dir", "nowhere"], "nowhere"),
        (["--load_checkpoint", "nowhere"], "nowhere"),
        (["--load_checkpoint", "gpt2"], "is a preset, a size without weights"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["train_dataset.data_loader.type=TrainingDataLoader"], "preprocess"),
        (["optimizer.type=Lion"], "optimizer.type"),
    ],
)
def test_mistakes(workplace, data, sizes, tmp_path, monkeypatch, capsys, changes, message):
    """One line, before anything is compiled or written."""
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "r.yaml", data, sizes)
    words = ["--config", str(run), "--output_dir", str(tmp_path / "out"), *changes]
    (line,) = problems(capsys, "pretrain", "gpt2", *words)
    assert message in line
    assert not (tmp_path / "out" / "checkpoint").exists()


def damaged(content: bytes, turn: int, choose: random.Random) -> bytes:
    """A flipped bit, or the file cut off, or longer by a byte."""
    if turn % 4 == 0:
        return content[: choose.randrange(len(content))]
    if turn % 4 == 1 and turn % 3 == 0:
        return content + b"\0"
    flipped = bytearray(content)
    flipped[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    return bytes(flipped)


def test_every_damage_is_found_and_named(trained, tmp_path, capsys):
    """Of every file of a training checkpoint, one after the other."""
    checkpoint = tmp_path / "CKP-5"
    shutil.copytree(trained / "checkpoint" / "rank_0" / "CKP-5", checkpoint)
    files, choose = sorted(checkpoint.iterdir()), random.Random(0)
    assert {path.suffix for path in files} == {".json", ".jsonl", ".yaml", ".txt", ".safetensors"}
    for turn in range(12 * len(files)):
        path = files[turn % len(files)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, turn // len(files), choose))
        (line,) = problems(capsys, "checkpoint", "verify", str(tmp_path))
        assert line.startswith(f"error: {path}: "), (turn, line)
        path.write_bytes(content)
    assert turn > 100 and main(["checkpoint", "verify", str(tmp_path)]) == 0


@pytest.mark.parametrize("how", ["--resume_training", "--load_checkpoint", "python"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    trained, tmp_path, capsys, caplog, how
):
    """The newest is cut off, the one before it lost its manifest."""
    output = tmp_path / "out"
    shutil.copytree(trained, output)
    folder = output / "checkpoint" / "rank_0"
    os.truncate(folder / "CKP-5" / "model.safetensors", 1000)
    (folder / "CKP-4" / "manifest.json").unlink()
    if how == "python":
        AutoModel.from_pretrained(output)
    elif how == "--load_checkpoint":
        words = ["--load_checkpoint", str(output), "--predict_data", "the"]
        assert main(["predict", "gpt2", *words]) == 0
    else:
        words = ["--config", "run.yaml", "--output_dir", str(output), "--resume_training", "True"]
        assert main(["pretrain", "gpt2", *words]) == 0
        assert f"resuming {folder}/CKP-2: step 2" in caplog.text
        last = trained / "checkpoint" / "rank_0" / "CKP-5" / "model.safetensors"
        assert (folder / "CKP-5" / "model.safetensors").read_bytes() == last.read_bytes()
    first, second, third = caplog.messages[:3]
    assert first.startswith(f"{folder}/CKP-5/model.safetensors: has 1000 bytes; must be ")
    assert second.startswith(f"{folder}/CKP-4/manifest.json: missing; ")
    assert third == f"using {folder}/CKP-2, the newest that is undamaged"


@pytest.fixture
def large_vocabulary(tmp_path) -> Path:
    """Of 300 tokens, with ids that a model of 281 lacks."""
    folder = tmp_path / "large"
    Gpt2Tokenizer(*train_bpe([tiny.text(20)], 300)).save_pretrained(folder)
    return folder


def test_a_vocabulary_that_the_model_lacks_is_not_kept_with_it(
    trained, large_vocabulary, tmp_path, capsys, caplog
):
    """One that was named is refused; one that lay beside the weights is warned of."""
    words = ["--config", "run.yaml", "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    size = AutoTokenizer.from_pretrained(large_vocabulary).vocab_size
    (line,) = problems(capsys, "pretrain", "gpt2", *words, "--tokenizer", str(large_vocabulary))
    expected = f"tokenizer: {large_vocabulary} has ids up to {size - 1}; must be below the model's"
    assert f"{expected} vocab_size 281" in line and f"vocab_size={size}" in line
    assert not (tmp_path / "out").exists()
    start = tmp_path / "start"
    AutoModel.from_pretrained("out").save_pretrained(
        start, tokenizer=AutoTokenizer.from_pretrained(large_vocabulary)
    )
    assert main(["finetune", "gpt2", *words, "--load_checkpoint", str(start)]) == 0
    assert f"tokenizer: {start} has ids up to {size - 1}" in caplog.text


def test_a_prompt_with_ids_that_the_model_lacks(trained, large_vocabulary, capsys):
    tokenizer = AutoTokenizer.from_pretrained(large_vocabulary)
    word = next(text for n in range(281, 300) if (text := tokenizer.decode([n])).isalpha())
    words = ["--load_checkpoint", "out", "--tokenizer", str(large_vocabulary)]
    (line,) = problems(capsys, "predict", "gpt2", *words, "--predict_data", word)
    assert "must be from 0 to 280; use the tokenizer that belongs to the model" in line


def test_an_output_folder_that_cannot_be(workplace, data, sizes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "r.yaml", data, sizes)
    words = ["--config", str(run), "--output_dir", str(tmp_path / "file" / "out")]
    (line,) = problems(capsys, "pretrain", "gpt2", *words)
    assert str(tmp_path / "file") in line


def test_weights_of_an_earlier_run_in_the_same_folder(trained, tmp_path):
    """The start lies where the new run's checkpoints go: it is moved, read and kept."""
    shutil.copytree(trained, tmp_path / "out")
    words = ["--config", "run.yaml", "--output_dir", str(tmp_path / "out")]
    start = str(tmp_path / "out" / "checkpoint" / "rank_0" / "CKP-5")
    assert main(["finetune", "gpt2", *words, "--load_checkpoint", start]) == 0
    new = tmp_path / "out" / "checkpoint" / "rank_0"
    old = tmp_path / "out" / "checkpoint" / ".earlier-1" / "rank_0"
    assert sorted(os.listdir(new)) == sorted(os.listdir(old)) == ["CKP-2", "CKP-4", "CKP-5"]
    assert (new / "CKP-5" / "vocab.json").exists()
