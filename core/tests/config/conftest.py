"""A model family of the tests' own: the core is tested without any package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import Field

from lm_core import log
from lm_core.config.load import load_run
from lm_core.config.model import ModelConfig
from lm_core.config.section import Positive
from lm_core.errors import ConfigError


class ToyConfig(ModelConfig):
    architectures: ClassVar = {"ToyLM": "text_generation", "ToyClassifier": "text_classification"}

    vocab_size: Positive = 100
    hidden_size: Positive = 64
    num_layers: Positive = 4
    num_heads: Positive = 4
    seq_length: Positive = 32
    norm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5

    @classmethod
    def from_hf(cls, values: dict) -> ToyConfig:
        return cls(hidden_size=values["n_embd"], num_layers=values["n_layer"])


PRESETS = {"toy": ToyConfig(), "toy_big": ToyConfig(hidden_size=128, num_layers=8, num_heads=8)}


@dataclass
class Family:
    configs: Path
    name: str = "toy"
    config_class: type[ModelConfig] = ToyConfig
    presets: dict = field(default_factory=lambda: PRESETS)
    hf_types: tuple[str, ...] = ("toy_hf",)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    folder = tmp_path / "packaged"
    folder.mkdir()
    (folder / "toy.yaml").write_text("trainer: {model_name: toy}\nrunner_config: {epochs: 2}\n")
    return Family(folder)


@pytest.fixture
def load(family: Family):
    """load(source, *overrides) -> RunConfig."""
    return lambda source, *overrides: load_run(source, overrides, family=family)


@pytest.fixture
def problems(load):
    """problems(source, *overrides) -> the lines of the ConfigError."""

    def found(source: object, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(source, *overrides)
        return list(caught.value.problems)

    return found


@pytest.fixture(autouse=True)
def forget_notices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "_noticed", set())
