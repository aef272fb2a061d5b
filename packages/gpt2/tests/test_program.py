"""What programs call around a run: its place, its model, its weights."""

from __future__ import annotations

import pytest

from lm_core import (
    AutoModel,
    LmConfig,
    LoraConfig,
    ParallelConfig,
    build_context,
    build_parallel_config,
    get_pet_model,
    transform_and_load_checkpoint,
)
from lm_core.errors import CheckpointError, ConfigError
from lm_core.peft import layout
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import assert_same
from lm_gpt2 import SPEC
from lm_gpt2.config import Gpt2Config

SMALL = {"vocab_size": 97, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "seq_length": 16}
PET = {"lora_rank": 2, "target_modules": ".*dense1"}


@pytest.fixture
def run(tmp_path):
    values = {"preset": "gpt2_tiny", **SMALL}
    made = {"model": {"model_config": values}, "output_dir": str(tmp_path / "out")}
    return LmConfig(made)


def test_sections_become_objects_of_their_kind(run):
    """`model_config` is what YAML calls it; a copy follows what other fields decide."""
    config = run.model.model_config
    assert config is run.model.config
    again = Gpt2Config(**config)
    assert again == config and again is not config
    again.num_layers = 3
    assert config.num_layers == 1
    run.model.model_config = again
    assert run.model.config.num_layers == 3
    run.parallel_config.model_parallel = 2
    assert ParallelConfig(**run.parallel_config).model_parallel == 2
    assert config["vocab_size"] == 97
    with pytest.raises(KeyError, match="vocab"):
        config["vocab"]
    config.checkpoint_name_or_path = None
    assert config.checkpoint_name_or_path == ""


def test_degrees_of_a_run_reach_its_model(run):
    """As reading the run would have them; without `use_parallel` they mean nothing."""
    run.parallel_config.model_parallel = 2
    assert build_parallel_config(run).world_size == 1
    run.use_parallel = True
    assert build_parallel_config(run) is run.model.config.parallel_config
    assert run.model.config.parallel_config.model_parallel == 2
    with pytest.raises(ConfigError, match="this one is alone"):
        build_context(run)
    run.parallel_config.model_parallel = 3
    with pytest.raises(ConfigError, match="3 does not divide 2 heads"):
        build_context(run)
    run.use_parallel = False
    assert build_context(run) == (0, 1)
    assert run.model.config.parallel_config.world_size == 1


def test_weights_that_a_run_names(run, tmp_path):
    model = tiny.model(SPEC, seed=7, **SMALL)
    model.save_pretrained(tmp_path / "base")
    network = AutoModel.from_config(run.model.config)
    with pytest.raises(CheckpointError, match="load_checkpoint: is empty; must be the weights"):
        transform_and_load_checkpoint(run, None, network)
    run.load_checkpoint = str(tmp_path / "base")
    transform_and_load_checkpoint(run, None, network, None, do_predict=True)
    assert_same(tiny.weights(network), tiny.weights(model))


def test_weights_below_an_adapter(run, tmp_path):
    """An adapter that the weights lack stays as it is; one that lies beside them is loaded."""
    tiny.model(SPEC, seed=7, **SMALL).save_pretrained(tmp_path / "base")
    run.load_checkpoint = str(tmp_path / "base")
    network = AutoModel.from_config(run.model.config, pet_config=LoraConfig(**PET))
    assert get_pet_model(network, LoraConfig(**PET)) is network  # which it has already
    with pytest.raises(ConfigError, match="has an adapter already"):
        get_pet_model(network, LoraConfig(lora_rank=3, target_modules=".*dense1"))
    before = {
        name: value for name, value in tiny.weights(network).items() if layout.is_adapter_name(name)
    }
    assert before
    transform_and_load_checkpoint(run, None, network)
    after = tiny.weights(network)
    assert_same({name: after[name] for name in before}, before)


def test_a_trained_adapter_beside_the_weights(run, tmp_path):
    model = adapted_model(SPEC)
    model.save_pretrained(tmp_path / "both")
    run.load_checkpoint = str(tmp_path / "both")
    network = AutoModel.from_config(model.config)
    transform_and_load_checkpoint(run, None, network)
    theirs = tiny.weights(model)
    assert any(map(layout.is_adapter_name, theirs))
    assert_same(tiny.weights(network), theirs)
