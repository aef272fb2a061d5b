"""A run is of the model that its network's name says, also where two call their sizes alike."""

from __future__ import annotations

from typing import Any

import pytest

from lm_core.config.load import load_run
from lm_core.errors import ConfigError
from lm_core.spec import find, installed, of_run, read_run

SIZES = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 100}


def run(**model: Any) -> dict[str, Any]:
    kind = model.pop("type", "LlamaConfig")
    values = {"model": {"model_config": {"type": kind, **SIZES}}}
    if arch := model.pop("arch", None):
        values["model"]["arch"] = {"type": arch}
    return {**values, "trainer": {"model_name": model["name"]}} if model else values


@pytest.mark.parametrize(
    ("values", "family"),
    [
        (run(), "llama"),
        (run(arch="LlamaForCausalLM"), "llama"),
        (run(arch="LlamaForCausalLM", name="mine"), "llama"),
        (run(name="llama2_7b_lora"), "llama"),
        (run(arch="Baichuan7BV2ForCausalLM"), "baichuan2"),
        (run(arch="Baichuan13BV2ForCausalLM", name="mine"), "baichuan2"),
        (run(arch="Baichuan13BV2ForCausalLM", name="baichuan2_13b_lora"), "baichuan2"),
        (run(name="baichuan2_13b"), "baichuan2"),
        (run(name="baichuan2_13b_lora"), "baichuan2"),
        (run(type="Baichuan2Config"), "baichuan2"),
        (run(type="BaichuanConfig", name="mine"), "baichuan2"),
    ],
)
def test_whose_a_run_is(values: dict[str, Any], family: str):
    assert of_run(values) is installed()[family]
    assert isinstance(read_run(values).model.config, installed()[family].config_class)


def test_a_class_has_one_owner():
    owners: dict[str, str] = {}
    for spec in installed().values():
        for name in spec.class_names():
            assert owners.setdefault(name, spec.name) == spec.name, name
            assert find(name) is spec
    assert owners["LlamaConfig"] == "llama"


def test_a_network_of_another_family_is_refused():
    with pytest.raises(ConfigError, match=r"model\.arch\.type: .*Baichuan13BV2ForCausalLM"):
        load_run(run(arch="Baichuan13BV2ForCausalLM"), family=installed()["llama"])
