"""Classes of texts out of a saved classifier: pipeline, `predict`, and every layout of weights."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from lm_core import AutoConfig, AutoModel, Trainer, pipeline
from lm_core.cli import main
from lm_core.errors import ConfigError, GenerationError
from lm_core.testing import tiny
from lm_core.testing.classification import class_gradients
from lm_core.testing.parity import TOLERANCES
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer


@pytest.mark.parity
def test_equals_the_recorded_reference():
    """Logits, loss and gradients of the original implementation, from the files that it wrote."""
    case = Path(__file__).parent / "goldens_txtcls"
    model = AutoModel.from_pretrained(case)
    assert model.config.label_names == ["p", "q", "r"]
    with np.load(case / "golden.npz", allow_pickle=False) as golden:
        ids, mask = golden["input_ids"], golden["attention_mask"]
        logits = model(Tensor(ids), Tensor(mask)).asnumpy()
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCES.logits)
        loss, found = class_gradients(model, ids, mask, golden["labels"])
        assert loss == pytest.approx(float(golden["loss"]), abs=TOLERANCES.loss)
        expected = {"score": golden["grad_score"].T, "position_embedding": golden["grad_wpe"]}
        for name, theirs in expected.items():
            np.testing.assert_allclose(found[f"{name}.weight"], theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A classifier with its vocabulary."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(20)], 280))
    end = tokenizer.eos_token_id
    model = tiny.model(
        SPEC, task="text_classification", label_names=["negative", "positive"], seq_length=40,
        vocab_size=tokenizer.vocab_size, eos_token_id=end, bos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


TEXTS = ["the red fox", "", "our teacher counts three stones and never finds the train", "a"]


def test_the_pipeline_says_what_each_text_gives_alone(saved):
    classify = pipeline("text_classification", model=str(saved))
    found = classify(TEXTS, top_k=2, batch_size=3)
    for text, answer in zip(TEXTS, found, strict=True):
        ids = classify.tokenizer.encode(text) or [classify.tokenizer.eos_token_id]
        logits = classify.model.classify([ids])[0].astype(np.float64)
        odds = np.exp(logits) / np.exp(logits).sum()
        assert {item["label"]: item["score"] for item in answer} == pytest.approx(
            {"negative": odds[0], "positive": odds[1]}, abs=1e-5
        )
        assert answer[0]["score"] >= answer[1]["score"]
        (alone,) = classify(text)
        assert alone["label"] == answer[0]["label"]
        assert alone["score"] == pytest.approx(answer[0]["score"], abs=1e-5)
    assert len({answer[0]["score"] for answer in found}) == len(TEXTS)
    assert Trainer(model=saved).predict(TEXTS[:1]) == classify(TEXTS[:1])
    assert classify([]) == []


def test_texts_that_are_too_long(saved):
    classify = pipeline("text_classification", model=str(saved))
    text = "the red fox sees three stones " * 10
    with pytest.raises(GenerationError, match=r"inputs\[1\]: has \d+ tokens; must have at most 40"):
        classify(["a", text])
    start = classify.tokenizer.decode(classify.tokenizer.encode(text)[:40])
    assert classify(text, truncation=True)[0]["score"] == pytest.approx(classify(start)[0]["score"])


def test_a_pipeline_of_another_task(saved, tmp_path):
    with pytest.raises(GenerationError, match="is one for text_classification; must be one for te"):
        pipeline("text_generation", model=str(saved))
    model = AutoModel.from_config(AutoConfig.from_pretrained("gpt2_tiny", hidden_size=8))
    with pytest.raises(GenerationError, match="is one for text_generation"):
        pipeline("text_classification", model=model, tokenizer=str(saved))
    classify = pipeline("text_classification", model=str(saved))
    with pytest.raises(GenerationError, match="top_k: 0; must be at least 1"):
        classify("a", top_k=0)
    with pytest.raises(GenerationError, match="truncation: 'left'"):
        classify("a", truncation="left")


def test_predict_prints_a_line_for_each_text(saved, capsys):
    words = ["predict", "gpt2", "--load_checkpoint", str(saved), "--predict_data", "a", "the fox"]
    assert main(words) == 0
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [[item] for item in pipeline("text_classification", str(saved))(words[-2:])]
    assert main([*words, "--top_k", "2"]) == 0
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [2, 2]
    assert main([*words, "--num_beams", "2", "--stream"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(" is for")[0] for line in errors if "error" in line] == [
        "error: num_beams:", "error: stream:",
    ]  # fmt: skip


def test_every_layout_by_command(saved, tmp_path, capsys):
    """native -> hf -> mindformers -> native: the same answers, the names of the classes too."""
    folders = [saved, *(tmp_path / name for name in ("hf", "mindformers", "native"))]
    for source, target in zip(folders, folders[1:], strict=False):
        words = ["--input", str(source), "--output", str(target), "--format", target.name]
        assert main(["convert", "gpt2", *words]) == 0
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == ["GPT2ForSequenceClassification"]
    assert written["id2label"] == {"0": "negative", "1": "positive"}
    assert written["pad_token_id"] == written["eos_token_id"]
    answers = [pipeline("text_classification", model=str(folder))(TEXTS) for folder in folders]
    assert answers[1:] == answers[:1] * 3


def test_a_published_config_says_its_classes():
    values = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]}
    read = SPEC.config_class.from_hf
    assert read(values).num_labels == 2
    assert read({**values, "num_labels": 5}).num_labels == 5
    named = read({**values, "id2label": {"1": "b", "0": "a", "2": "c"}})
    assert (named.num_labels, named.label_names) == (3, ["a", "b", "c"])
    plain = {"id2label": {str(k): f"LABEL_{k}" for k in range(11)}}
    assert read({**values, **plain}).label_names is None
    assert read({**values, **plain}).num_labels == 11
    assert not read({"model_type": "gpt2", "id2label": {"0": "a"}}).is_classifier
    with pytest.raises(ConfigError, match="id2label: is .*; must be"):
        read({**values, "id2label": {"a": 0}})
