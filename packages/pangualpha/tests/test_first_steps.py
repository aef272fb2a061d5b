"""The first example of the model card on real Chinese text, in fewer steps."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from outside import DATA

from lm_core import Trainer
from lm_core.cli import run_verb
from lm_core.testing import tiny
from lm_pangualpha import SPEC

TNEWS = DATA / "tnews"
README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not TNEWS.exists(), reason="needs TNEWS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Headlines as sentences, and the vocabulary that the program of the card learns from them."""
    place = tmp_path_factory.mktemp("first")
    (place / "tnews").symlink_to(TNEWS)
    program = README.read_text(encoding="utf-8").partition("```python\n# news.py\n")[2]
    (place / "news.py").write_text(program.partition("```")[0], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        runpy.run_path("news.py")
    return place


def preprocess(*words):
    assert run_verb("preprocess", SPEC, list(map(str, words))) == 0


@pytest.mark.slow
def test_headlines(folder, capsys):
    """Perplexity on headlines that were not trained falls clearly."""
    vocabulary = ("--model_file", folder / "news" / "vocab.model")
    for name in ("train", "dev"):
        text, target = folder / "news" / f"{name}.txt", folder / f"{name}.mindrecord"
        preprocess("pretrain", "--input_glob", text, *vocabulary, "--seq_length", 129,
                   "--output_file", target)  # fmt: skip
    said = re.findall(r"tokens: ([\d,]+)", capsys.readouterr().out)
    assert sum(int(count.replace(",", "")) for count in said) > 1_500_000

    untrained, model = folder / "untrained", tiny.model(SPEC)
    model.initialize(0)
    model.save_pretrained(untrained)
    few = {"data_loader": {"num_samples": 100}}
    run = {"base": "pangualpha_tiny", "runner_config": {"epochs": 1, "max_steps": 250}}
    first = Trainer(
        {**run, "output_dir": str(folder / "first"), "eval_dataset": few},
        tokenizer=folder / "news",
        train_dataset=folder / "train.mindrecord",
        eval_dataset=folder / "dev.mindrecord",
    )
    before = first.evaluate(untrained)["PerplexityMetric"]["PPL"]
    trained = first.train()
    after = first.evaluate(trained)["PerplexityMetric"]["PPL"]
    assert 3000 < before < 5000
    assert after < 120, after
