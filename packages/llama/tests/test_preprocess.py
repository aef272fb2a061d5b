"""`python -m lm_llama.preprocess`: the commands of the model card, and training on records."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from outside import DATA

from lm_core.cli import run_verb
from lm_core.data.pipeline import RecordDataset
from lm_core.testing import tiny
from lm_llama import SPEC
from lm_llama.tokenizer import load  # noqa: E402

needs_data = pytest.mark.skipif(not (DATA / "llama").is_dir(), reason=f"{DATA} is not here")
QUESTIONS = [
    {"instruction": "Name a fox.", "input": "", "output": "The red fox."},
    {"instruction": "Who waits?", "input": "The cook waits.", "output": "The cook</s>, I think."},
    {"instruction": "Who?"},
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(tiny.sentencepiece_model())
    return path


def run(verb, *words):
    assert run_verb(verb, SPEC, list(map(str, words))) == 0


def read(path):
    records = RecordDataset(path)
    return records.read(range(len(records)))


def test_alpaca_then_dialogues(vocabulary, tmp_path, capsys):
    source, middle, output = (tmp_path / name for name in ("a.json", "b.json", "c.mindrecord"))
    source.write_text(json.dumps(QUESTIONS))
    run("preprocess", "alpaca", "--data_path", source, "--output_path", middle)
    assert "records left out, no output: 1" in capsys.readouterr().out
    run(
        *("preprocess", "--dataset_type", "qa", "--input_glob", middle, "--model_file", vocabulary),
        *("--seq_length", 1024, "--output_file", output),
    )
    rows, tokenizer = read(output), load(vocabulary.parent)
    assert rows["input_ids"].shape == rows["labels"].shape == (2, 1025)
    answers = [labels[labels != -100].tolist() for labels in rows["labels"]]
    assert [ids[-1] for ids in answers] == [2, 2]
    said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert said == ["The red fox.", "The cook</s>, I think."]
    assert [row.tolist().count(2) for row in rows["input_ids"]] == [1, 1]


def test_wiki(vocabulary, tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(" = A = \n \n" + "the red fox waits \n \n" * 30)
    run(
        *("preprocess", "--dataset_type", "wiki", "--input_glob", tmp_path / "*.tokens"),
        *("--model_file", vocabulary, "--seq_length", 16),
        *("--output_file", tmp_path / "wiki.mindrecord"),
    )
    rows = read(tmp_path / "wiki.mindrecord")
    assert list(rows) == ["input_ids"]
    ids = rows["input_ids"].ravel().tolist()
    assert rows["input_ids"].shape[1] == 17
    assert ids[0] == 1
    pairs = [(a, b) for a, b in zip(ids, ids[1:], strict=False) if a == 2 or b == 1]
    assert set(pairs) == {(2, 1)}


@pytest.mark.slow
def test_training_on_dialogues(vocabulary, tmp_path, capsys):
    """The run of the card: a folder or a file, with the columns that it names."""
    talk = [{"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I"}]}]
    (tmp_path / "talk.json").write_text(json.dumps(talk * 4))
    words = ("--input_file", tmp_path / "talk.json", "--model_file", vocabulary)
    words += ("--seq_length", 192, "--output_file")
    run("preprocess", "qa", *words, tmp_path / "records" / "talk.mindrecord")
    size = load(vocabulary.parent).vocab_size
    sizes = {"preset": "llama_tiny", "vocab_size": size, "seq_length": 192, "num_layers": 1}
    settings = {
        "base": "llama_tiny",
        "model": {"model_config": sizes},
        "runner_config": {"max_steps": 2, "batch_size": 2},
        "train_dataset": {
            "data_loader": {"type": "MindDataset", "dataset_dir": str(tmp_path / "records")},
            "input_columns": ["input_ids", "labels"],
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    common = ("--config", tmp_path / "run.yaml", "--output_dir")
    run("pretrain", *common, tmp_path / "folder")
    file = tmp_path / "records" / "talk.mindrecord"
    run("pretrain", *common, tmp_path / "file", "--train_dataset_dir", file)
    logs = [tmp_path / name / "log" / "rank_0" / "metrics.jsonl" for name in ("folder", "file")]
    losses = [re.findall(r'"loss": ([\d.]+)', log.read_text()) for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    packed = tmp_path / "packed" / "x.mindrecord"
    run("preprocess", "qa", *words, packed, "--packing")
    capsys.readouterr()
    line = [*common, tmp_path / "packed_run", "--train_dataset_dir", packed]
    run("pretrain", *line)


@needs_data
@pytest.mark.parity
def test_the_published_vocabulary(tmp_path):
    """Dialogues as they are published; the ids spell each dialogue and nothing else."""
    source = DATA / "alpaca" / "fastchat_dummy_conversation.json"
    run(
        *("preprocess", "qa", "--input_glob", source, "--seq_length", 2048),
        *("--model_file", DATA / "llama" / "tokenizer.model"),
        *("--output_file", tmp_path / "x.mindrecord"),
    )
    rows, tokenizer = read(tmp_path / "x.mindrecord"), load(DATA / "llama")
    given = json.loads(source.read_text(encoding="utf-8"))
    assert len(rows["labels"]) == len(given)
    for ids, labels, record in zip(rows["input_ids"], rows["labels"], given, strict=True):
        turns = record["conversations"]
        ends = np.flatnonzero(labels == 2)
        assert len(ends) == len(turns) // 2
        said = [part for part in np.split(labels, ends + 1)[:-1]]
        texts = [
            tokenizer.decode(part[part != -100].tolist(), skip_special_tokens=True) for part in said
        ]
        assert texts == [turn["value"] for turn in turns[1::2]]
        whole = tokenizer.decode(ids[: ends[-1] + 1].tolist())
        assert all(f"USER: {turn['value']} ASSISTANT:" in whole for turn in turns[::2])
