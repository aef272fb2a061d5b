"""The first example of the model card on real data, in fewer steps."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core import AutoModel, Trainer
from lm_core.testing import tiny
from lm_glm2 import SPEC

ADGEN = DATA / "adgen"
README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not ADGEN.exists(), reason="needs AdvertiseGen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """AdvertiseGen, and the vocabulary that the program of the card learns from it."""
    place = tmp_path_factory.mktemp("first")
    (place / "AdvertiseGen").mkdir()
    for ours, theirs in (("train", "train_head5000"), ("dev", "dev")):
        text = (ADGEN / f"{theirs}.json").read_text(encoding="utf-8")
        (place / "AdvertiseGen" / f"{ours}.json").write_text(text, encoding="utf-8")
    program = README.read_text(encoding="utf-8").partition("```python\n# vocabulary.py\n")[2]
    (place / "vocabulary.py").write_text(program.partition("```")[0], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        runpy.run_path("vocabulary.py")
    return place


def trainer(folder, name, output, data="AdvertiseGen", **settings):
    run = {
        "base": name, "output_dir": str(folder / output),
        "runner_config": {"batch_size": 8, **settings.pop("runner", {})}, **settings,
    }  # fmt: skip
    return Trainer(
        run, tokenizer=folder / "AdvertiseGen", train_dataset=folder / data,
        eval_dataset=folder / data,
    )  # fmt: skip


def loss(folder, weights, data):
    """Of the summaries of a file."""
    short = {"max_source_length": 64, "max_target_length": 128}
    metric = [{"type": "PerplexityMetric"}]
    own = trainer(folder, "glm2_tiny", "scores", data, eval_dataset=short, metric=metric)
    return own.evaluate(weights)["PerplexityMetric"]["loss"]


def rouge(folder, weights, output):
    """Of the answers to the first 24 rows."""
    few = {"data_loader": {"num_samples": 24}}
    own = trainer(folder, "glm2_tiny", output, eval_dataset=few)
    return own.evaluate(weights)["ADGENMetric"]["rouge-l"]


@pytest.mark.slow
def test_advertisements_and_an_adapter(folder):
    """Answers come nearer to people's; an adapter for trousers knows more of these than before."""
    untrained, model = folder / "untrained", tiny.model(SPEC)
    model.initialize(0)
    model.save_pretrained(untrained)
    before = rouge(folder, untrained, "scores_before")
    first = trainer(folder, "glm2_tiny", "first", runner={"max_steps": 400, "epochs": 1})
    base = first.train()
    after = rouge(folder, base, "scores_after")
    assert after > before + 8, (before, after)
    lines = (folder / "scores_after" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 24 and all(json.loads(line)["prediction"] for line in lines)

    rows = (folder / "AdvertiseGen" / "train.json").read_text(encoding="utf-8").splitlines()
    trousers = "\n".join([row for row in rows if "类型#裤" in row][:200])
    (folder / "trousers.json").write_text(trousers, encoding="utf-8")
    whole, bits = loss(folder, base, "trousers.json"), weights_of(base)
    steps = {"max_steps": 150, "epochs": 8}
    adapted = trainer(folder, "glm2_tiny_lora", "adapted", "trousers.json", runner=steps)
    adapter = adapted.finetune(base)
    assert loss(folder, adapter, "trousers.json") < whole - 0.05
    trained = tiny.weights(adapted.network)
    for name, array in bits.items():
        np.testing.assert_array_equal(trained[name], array, err_msg=name)
    changed = trained.keys() - bits.keys()
    assert len(changed) == 28 and all(".lora_" in name for name in changed)
    kept = weights_of(base)
    for name, array in bits.items():
        np.testing.assert_array_equal(kept[name], array, err_msg=name)


def weights_of(checkpoint):
    found = tiny.weights(AutoModel.from_pretrained(checkpoint))
    return {name: array.copy() for name, array in found.items()}
