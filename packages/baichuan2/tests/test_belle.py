"""A tiny Baichuan 2 learns real dialogues: the loss falls, and in a chat each answer ends."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from outside import DATA

from lm_baichuan2 import SPEC
from lm_baichuan2.tokenizer import load
from lm_core import AutoModel
from lm_core.cli import run_verb
from lm_core.testing import tiny

RECORDED = DATA / "belle" / "belle_chat_ramdon_first1000.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RECORDED.is_file(), reason=f"{RECORDED} is not here"),
]
LENGTH, RECORDS, VOCABULARY = 96, 12, 760


def run(*words):
    verb, *rest = map(str, words)
    assert run_verb(verb, SPEC, rest) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shortest dialogues of the real file, of two rounds each, through the card's command.

    Without white space around texts, which a line of a chat cannot have.
    """
    folder = tmp_path_factory.mktemp("belle")
    given = json.loads(RECORDED.read_text(encoding="utf-8"))
    given = [one["conversations"] for one in given if len(one["conversations"]) == 4]
    given.sort(key=lambda turns: len("".join(turn["value"] for turn in turns)))
    chosen = {turns[0]["value"].strip(): turns for turns in given[: 2 * RECORDS]}
    talk = [
        {"conversations": [{**turn, "value": turn["value"].strip()} for turn in turns]}
        for turns in list(chosen.values())[:RECORDS]
    ]
    (folder / "talk.json").write_text(json.dumps(talk), encoding="utf-8")
    lines = [turn["value"] for one in talk for turn in one["conversations"]]
    symbols = ["<reserved_106>", "<reserved_107>"]
    model = tiny.sentencepiece_model(
        VOCABULARY, sentence_iterator=iter(lines * 3), user_defined_symbols=symbols,
        add_dummy_prefix=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model)
    run(
        *("preprocess", "belle", "--input_glob", folder / "*.json", "--seq_length", LENGTH),
        *("--model_file", folder / "tokenizer.model", "--output_file", folder / "b.mindrecord"),
    )
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The output of a run, and the losses of its steps."""
    sizes = {"preset": "baichuan2_tiny", "vocab_size": VOCABULARY, "seq_length": LENGTH}
    settings = {
        "base": "baichuan2_tiny",
        "model": {"model_config": {**sizes, "max_decode_length": LENGTH}},
        "seed": 1,
        "runner_config": {"epochs": 60, "batch_size": 6},
        "lr_schedule": {"learning_rate": 1e-2, "lr_end": 1e-4},
        "train_dataset": {"input_columns": ["input_ids", "labels"]},
        "callbacks": [
            {"type": "CheckpointMonitor", "prefix": "belle", "save_checkpoint_steps": 120}
        ],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    run(
        *("pretrain", "--config", folder / "run.yaml", "--output_dir", folder / "out"),
        *("--train_data", folder / "b.mindrecord", "--tokenizer", folder),
    )
    log = (folder / "out" / "log" / "rank_0" / "metrics.jsonl").read_text().splitlines()
    return folder / "out", [json.loads(line)["loss"] for line in log if '"loss"' in line]


def test_the_loss_falls(trained):
    _, losses = trained
    assert losses[-1] < 0.1 * losses[0]


def test_answers_are_learnt_and_end(folder, trained):
    """Both of each dialogue, one asked with the other before it."""
    (saved,) = (trained[0] / "checkpoint" / "rank_0").glob("belle-120")
    model, tokenizer = AutoModel.from_pretrained(saved), load(folder)
    ended, exact = [], []
    for record in json.loads((folder / "talk.json").read_text(encoding="utf-8")):
        texts = [turn["value"] for turn in record["conversations"]]
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        for end in (1, 3):
            prompt = tokenizer.apply_chat_template(messages[:end])
            (row,) = model.generate([prompt], max_length=LENGTH, do_sample=False)
            said = row[len(prompt) :].tolist()
            ended.append(said[-1] == tokenizer.eos_token_id)
            exact.append(said == [*tokenizer.encode_said(texts[end]), 2])
    assert sum(ended) >= 0.9 * len(ended)
    assert sum(exact) >= 0.7 * len(exact)


def test_a_chat(folder, trained, monkeypatch, capsys, tmp_path):
    """Two rounds; the second answer depends on the first, and no `</s>` is shown."""
    talk = json.loads((folder / "talk.json").read_text(encoding="utf-8"))
    right = 0
    for record in talk[:3]:
        texts = [turn["value"] for turn in record["conversations"]]
        (tmp_path / "lines").write_text(f"{texts[0]}\n{texts[2]}\n", encoding="utf-8")
        with (tmp_path / "lines").open(encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdin", file)
            run("chat", "--load_checkpoint", trained[0], "--do_sample", "False")
        shown = capsys.readouterr().out
        assert "</s>" not in shown and "reserved" not in shown
        right += shown == f"{texts[1]}\n{texts[3]}\n"
    assert right >= 2
