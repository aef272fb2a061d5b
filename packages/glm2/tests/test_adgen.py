"""ADGEN: the sections of the model card, training on JSON, and on records made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core import cli
from lm_core import spec as registry
from lm_core.data.adgen import AnswerRecords
from lm_core.data.answers import Lengths
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import LmError
from lm_core.testing import tiny
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe
from lm_core.train import vocabulary
from lm_core.trainer import Trainer
from lm_glm2 import SPEC

CARD = (Path(__file__).parent / "card" / "adgen.yaml").read_text(encoding="utf-8")
TINY = """\
trainer: {type: CausalLanguageModelingTrainer, model_name: glm2_tiny}
model: {model_config: {preset: glm2_tiny, num_layers: 1, hidden_size: 32, num_attention_heads: 2}}
runner_config: {epochs: 2, batch_size: 2}
callbacks: [{type: CheckpointMointor, save_checkpoint_steps: 3}]
optimizer: {type: adamw, learning_rate: 0.01}
"""
ROWS = [
    {"content": f"shape#{word}*colour#{n}", "summary": f"{word} things are {n} of {n}."}
    for n, word in enumerate(("wide", "small", "red", "long", "old"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, train.json, dev.json and run.yaml."""
    found = tmp_path_factory.mktemp("adgen")
    (found / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    for name, rows in (("train.json", ROWS), ("dev.json", ROWS[:2])):
        lines = (json.dumps(row) + "\n" for row in rows)
        (found / name).write_text("".join(lines), encoding="utf-8")
    (found / "run.yaml").write_text(TINY + CARD.replace("{folder}", str(found)), encoding="utf-8")
    return found


def pretrain(folder, out, *words):
    line = ["pretrain", "glm2", "--config", str(folder / "run.yaml"), "--output_dir", str(out)]
    return cli.main([*line, *map(str, words)])


def losses(out):
    lines = (out / "log" / "rank_0" / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.fixture(scope="module")
def trained(folder):
    """The run of the card, on two epochs of two steps."""
    assert pretrain(folder, folder / "whole") == 0
    return folder / "whole"


def test_the_card_trains_and_its_checkpoint_has_the_vocabulary(trained):
    found = losses(trained)
    assert len(found) == 4 and found[-1] < found[0]
    last = trained / "checkpoint" / "rank_0" / "CKP-4"
    assert (last / "tokenizer.model").is_file()


def test_resumed_in_the_middle_of_an_epoch_equals_never_stopped(folder, trained, tmp_path):
    assert pretrain(folder, tmp_path, "--max_steps", 3) == 0
    assert pretrain(folder, tmp_path, "--resume_training", "True") == 0
    assert losses(tmp_path) == losses(trained)
    both = [path / "checkpoint" / "rank_0" / "CKP-4" for path in (tmp_path, trained)]
    one, other = ((path / "model.safetensors").read_bytes() for path in both)
    assert one == other


def test_a_folder_and_records_made_by_preprocess_train_alike(folder, trained, tmp_path, capsys):
    assert pretrain(folder, tmp_path / "folder", "--train_dataset_dir", folder) == 0
    assert losses(tmp_path / "folder") == losses(trained)
    records = tmp_path / "x.mindrecord"
    line = ["preprocess", "glm2", "adgen", "--input_glob", folder / "train.json"]
    line += ["--model_file", folder / "tokenizer.model", "--output_file", records]
    line += ["--max_source_length", 64, "--max_target_length", 128, "--num_process", 2]
    assert cli.main([*map(str, line)]) == 0
    assert "5 records" in capsys.readouterr().out
    words = ["--train_dataset_dir", records, "train_dataset.data_loader.type=MindDataset"]
    assert pretrain(folder, tmp_path / "records", *words) == 0
    assert losses(tmp_path / "records") == losses(trained)
    tokenizer = SPEC.tokenizer(folder)
    direct = AnswerRecords(folder / "train.json", tokenizer, Lengths(64, 128), length=194)
    written = RecordDataset(records)
    assert written.columns == direct.columns and len(written) == len(direct)
    for name, rows in direct.read(range(5)).items():
        assert np.array_equal(written.read(range(5))[name], rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train_dataset.data_loader.version=1"], "version: is 1, the form of records of ChatGLM"),
        (["train_dataset.data_loader.origin_columns=[a]"], "origin_columns: are 1; must be two"),
        (["train_dataset.data_loader.origin_columns=[a,b]"], "has no row with a and b"),
        (["train_dataset.max_source_length=null"], "train_dataset.max_source_length: is missing"),
        (["train_dataset.max_source_length=9"], "train_dataset.max_source_length: is 9; must be"),
        (["model.model_config.seq_length=191"], "= 193 ids; must be at most 192, seq_length and"),
        (["--train_dataset_dir", "{folder}/whole"], "whole holds no train.json"),
        (["--train_dataset_dir", "x.mindrecord"], "set train_dataset.data_loader.type=MindDataset"),
        (["train_dataset.tokenizer.vocab_file=/nowhere/x.model"],
         "train_dataset.tokenizer.vocab_file: /nowhere/x.model does not exist; must be the"),
        (["--train_dataset_dir", ""], "train_dataset.data_loader.dataset_dir: is missing"),
        (["train_dataset.data_loader.type=SFTDataLoader"], "reads raw text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder, trained, tmp_path, capfd, changes, message):
    words = [word.replace("{folder}", str(folder)) for word in changes]
    assert pretrain(folder, tmp_path, *words) == 2
    errors = capfd.readouterr().err
    lines = [line for line in errors.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0], errors
    assert "Traceback" not in errors


def test_the_shortest_context_that_holds_the_records(folder):
    run = registry.read_run(folder / "run.yaml", {"model.model_config.seq_length": 192})
    records = Trainer(run)._records(run, "train_dataset")
    assert records.row_length == 193


def test_without_a_vocabulary_the_line_says_where_to_name_it(folder, trained):
    run = registry.read_run(folder / "run.yaml")
    for section in (run.train_dataset, run.eval_dataset):
        section.tokenizer.vocab_file = None
    with pytest.raises(LmError, match="^train_dataset.tokenizer.vocab_file: is missing; must be"):
        Trainer(run)._records(run, "train_dataset")
    assert Trainer(run, tokenizer=folder)._records(run, "train_dataset").row_length == 194
    weights = folder / "whole" / "checkpoint" / "rank_0" / "CKP-4"
    assert Trainer(run)._records(run, "train_dataset", str(weights)).row_length == 194


def test_a_vocabulary_of_data_that_are_not_used_is_not_missed(folder):
    run = registry.read_run(folder / "run.yaml")
    assert vocabulary.named(run) == str(folder)
    for section in (run.train_dataset, run.eval_dataset):
        section.tokenizer.vocab_file = "/nowhere/tokenizer.model"
    assert vocabulary.named(run) == ""
    run.processor.tokenizer.vocab_file = "/nowhere/tokenizer.model"
    assert vocabulary.named(run) == "/nowhere"


def test_another_models_tokenizer_is_refused_by_name(folder, tmp_path):
    ByteLevelBpe(*train_bpe(["a b"], 257), eos_token="<|endoftext|>").save_pretrained(tmp_path)
    section = {
        "data_loader": {"type": "ADGenDataLoader", "dataset_dir": str(folder)},
        "max_source_length": 20, "max_target_length": 20,
        "tokenizer": {"vocab_file": str(tmp_path / "vocab.json")},
    }  # fmt: skip
    run = registry.read_run(
        {"model": {"model_config": {"preset": "gpt2_tiny"}}, "train_dataset": section}
    )
    with pytest.raises(LmError, match="^build_prompt: .* has no form for questions; must be"):
        Trainer(run)._records(run, "train_dataset")
    run.train_dataset.max_source_length = run.train_dataset.max_target_length = None
    run.train_dataset.data_loader.version = 3
    with pytest.raises(LmError) as error:
        Trainer(run)._records(run, "train_dataset")
    assert len(error.value.problems) == 3


def test_real_rows_and_the_real_vocabulary():
    place = DATA / "adgen" / "dev.json"
    if not place.is_file() or not (DATA / "chatglm2_6b" / "tokenizer.model").is_file():
        pytest.skip(f"{DATA} has no adgen and chatglm2_6b")
    tokenizer = SPEC.tokenizer(DATA / "chatglm2_6b")
    records = AnswerRecords(place, tokenizer, Lengths(64, 128), length=194)
    assert len(records) == 1070
    end = tokenizer.encode("\n\n答：", add_special_tokens=False)[-3:]
    cut = 0
    for pair, row in zip(records.pairs, records.stream(range(1070)), strict=True):
        trained = np.flatnonzero(row["labels"] != -100)
        first, last = int(trained[0]), int(trained[-1])
        assert np.array_equal(trained, np.arange(first, last + 1))
        assert first <= 64 and last - first <= 128 and row["input_ids"][last] == 2
        assert row["input_ids"][first - 3 : first].tolist() == end
        prompt = tokenizer.encode(tokenizer.build_prompt(pair.content))
        cut += len(prompt) > 64
        if len(prompt) <= 64:
            assert row["input_ids"][:first].tolist() == prompt
    assert 0 < cut < 1070
