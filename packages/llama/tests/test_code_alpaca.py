"""A tiny Llama learns real questions and answers: the loss falls, and answers end."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
import yaml
from outside import DATA

from lm_core.cli import run_verb
from lm_core.data.pipeline import RecordDataset
from lm_core.generation.config import GenerationConfig
from lm_llama import SPEC
from lm_llama.tokenizer import load

RECORDED = DATA / "code_alpaca" / "code_alpaca_2k.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RECORDED.is_file(), reason=f"{RECORDED} is not here"),
]
LENGTH, RECORDS = 256, 24


def run(*words):
    verb, *rest = map(str, words)
    assert run_verb(verb, SPEC, rest) == 0


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The shortest records of the real file, through both commands of the card."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("code")
    given = json.loads(RECORDED.read_text(encoding="utf-8"))
    given.sort(key=lambda one: len(one["instruction"] + one["input"] + one["output"]))
    (folder / "given.json").write_text(json.dumps(given[:RECORDS]))
    run(
        *("preprocess", "alpaca", "--data_path", folder / "given.json"),
        *("--output_path", folder / "talk.json"),
    )
    turns = json.loads((folder / "talk.json").read_text())
    lines = [turn["value"] for one in turns for turn in one["conversations"]]
    made = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, model_type="bpe", vocab_size=600,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    run(
        *("preprocess", "qa", "--input_glob", folder / "talk.json"),
        *("--model_file", folder / "tokenizer.model", "--seq_length", LENGTH),
        *("--output_file", folder / "code.mindrecord"),
    )
    return folder


def test_a_model_learns_to_answer_and_to_end(records):
    sizes = {"preset": "llama_tiny", "vocab_size": 600, "seq_length": LENGTH}
    settings = {
        "base": "llama_tiny",
        "model": {"model_config": sizes},
        "seed": 1,
        "runner_config": {"epochs": 40, "batch_size": 8},
        "lr_schedule": {"learning_rate": 1e-2},
        "train_dataset": {"input_columns": ["input_ids", "labels"]},
        "callbacks": [
            {"type": "CheckpointMonitor", "prefix": "code", "save_checkpoint_steps": 120}
        ],
    }
    (records / "run.yaml").write_text(yaml.safe_dump(settings))
    run(
        *("pretrain", "--config", records / "run.yaml", "--output_dir", records / "out"),
        *("--train_dataset_dir", records / "code.mindrecord"),
    )
    log = (records / "out" / "log" / "rank_0" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log if '"loss"' in line]
    assert losses[-1] < 0.1 * losses[0]
    from lm_core.auto import AutoModel

    (saved,) = (records / "out" / "checkpoint" / "rank_0").glob("code-120")
    model, tokenizer = AutoModel.from_pretrained(saved), load(records)
    dataset = RecordDataset(records / "code.mindrecord")
    rows = dataset.read(range(len(dataset)))
    starts = [int(np.flatnonzero(labels != -100)[0]) for labels in rows["labels"]]
    prompts = [ids[:start] for ids, start in zip(rows["input_ids"], starts, strict=True)]
    answers = model.generate(prompts, GenerationConfig(max_length=LENGTH, do_sample=False))
    ended = [row[-1] == tokenizer.eos_token_id for row in answers]
    assert np.mean(ended) > 0.9
    exact = [
        row[len(prompt) :].tolist() == labels[labels != -100].tolist()
        for row, prompt, labels in zip(answers, prompts, rows["labels"], strict=True)
    ]
    assert np.mean(exact) > 0.5
