"""A model package that is a few numbers, for verbs that only look."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_core import spec as registry
from lm_core.config.model import ModelConfig
from lm_core.spec import ModelSpec


class LookConfig(ModelConfig):
    vocab_size: int = 300
    hidden_size: int = 8
    num_layers: int = 2
    num_heads: int = 2
    seq_length: int = 4
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1


def shapes(config: LookConfig) -> dict[str, tuple[int, ...]]:
    """A table, and in each block what attention and feed-forward have, and a norm."""
    hidden, found = config.hidden_size, {"embedding.weight": (300, config.hidden_size)}
    for layer in range(config.num_layers):
        block = f"layers.{layer}."
        found[f"{block}attention_norm.weight"] = (hidden,)
        found[f"{block}attention.k.weight"] = (hidden, hidden)
        found[f"{block}mlp.up.weight"] = (hidden, 4 * hidden)
    return found


class Letters:
    """Ids are characters; 0 pads and 1 ends."""

    vocab_size = 256
    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(index) for index in ids)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The package `toy` alone is installed, and the working directory is empty."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "toy.yaml").write_text("trainer: {model_name: toy}\nrunner_config:\n  batch_size: 2\n")
    (runs / "toy_big.yaml").write_text(
        "base: toy\ntrainer: {model_name: toy_big}\noptimizer:\n  beta1: 0.8\n"
        "metric: {type: perplexity}\n"
    )
    made = ModelSpec(
        name="toy",
        config_class=LookConfig,
        presets={"toy": LookConfig(), "toy_big": LookConfig(hidden_size=16)},
        build=lambda config, context: None,
        hf_types=(),
        tables={"hf": SimpleNamespace(shapes=shapes)},
        tokenizer=lambda folder: Letters(),
        configs=runs,
    )
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(registry, "installed", lambda: {"toy": made})
    monkeypatch.setattr(registry, "names", lambda: ["toy"])
    return made
