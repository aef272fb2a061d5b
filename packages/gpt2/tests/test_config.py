"""Sizes, activations, and the packaged run files."""

from __future__ import annotations

import pytest
import yaml

from lm_core.config.checks import no_effect
from lm_core.config.load import dump_run, load_run
from lm_core.errors import ConfigError
from lm_core.spec import find, read_run
from lm_gpt2 import SPEC
from lm_gpt2.config import PRESETS, Gpt2Config


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(name, count):
    assert PRESETS[name].parameter_count() == count


def test_a_count_made_of_shapes():
    config = Gpt2Config(
        vocab_size=11, hidden_size=6, num_layers=2, num_heads=3, seq_length=5, expand_ratio=2
    )
    v, h, p, f = 11, 6, 5, 12
    block = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    assert config.parameter_count() == v * h + p * h + 2 * block + 2 * h
    assert (
        config.copy(tie_word_embeddings=False).parameter_count() == config.parameter_count() + h * v
    )
    assert (
        config.copy(max_position_embeddings=7).parameter_count() == config.parameter_count() + 2 * h
    )


@pytest.mark.parametrize(
    ("name", "hidden", "layers", "heads", "seq", "act"),
    [
        ("gpt2", 768, 12, 12, 1024, "gelu_tanh"),
        ("gpt2_medium", 1024, 24, 16, 1024, "gelu_tanh"),
        ("gpt2_large", 1280, 36, 20, 1024, "gelu_tanh"),
        ("gpt2_xl", 1600, 48, 25, 1024, "gelu_tanh"),
        ("gpt2_13b", 5120, 40, 40, 2048, "gelu_exact"),
        ("gpt2_52b", 8192, 64, 32, 1024, "fast_gelu"),
    ],
)
def test_presets_and_run_files_have_the_published_sizes(name, hidden, layers, heads, seq, act):
    for config in (PRESETS[name], read_run(name).model.config):
        sizes = (
            config.hidden_size,
            config.num_layers,
            config.num_heads,
            config.seq_length,
            config.hidden_act,
        )
        assert sizes == (hidden, layers, heads, seq, act)
        assert (config.vocab_size, config.positions, config.expand_ratio, config.eos_token_id) == (
            50257,
            seq,
            4,
            50256,
        )
        assert config.layernorm_epsilon == 1e-5 and config.tie_word_embeddings


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("gelu", "gelu_tanh"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_exact", "gelu_exact"),
        ("quick_gelu", "fast_gelu"),
        ("fast_gelu", "fast_gelu"),
        ("relu", "relu"),
        ("silu", "silu"),
    ],
)
def test_activations_by_all_their_names(given, canonical):
    assert Gpt2Config(hidden_act=given).hidden_act == canonical
    assert Gpt2Config(hidden_act=canonical).hidden_act == canonical


def test_the_special_token_is_the_last_of_the_vocabulary():
    config = PRESETS["gpt2_tiny"].copy(vocab_size=97)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.unk_token_id) == (
        96,
    ) * 4
    assert config.copy() == config and config.copy(vocab_size=50257).eos_token_id == 50256
    assert Gpt2Config(vocab_size=97, eos_token_id=None).eos_token_id is None
    assert (
        load_run(
            "gpt2_tiny", ["model.model_config.vocab_size=300"], family=SPEC
        ).model.config.eos_token_id
        == 299
    )


def test_sequences_need_positions():
    assert Gpt2Config(seq_length=8, max_position_embeddings=16).positions == 16
    with pytest.raises(ConfigError, match="seq_length: 32 is more than the 16 positions"):
        Gpt2Config(seq_length=32, max_position_embeddings=16)


# Run files.


def test_every_run_file_loads_and_survives_its_dump():
    assert set(SPEC.run_names()) >= set(PRESETS)
    for name in SPEC.run_names():
        run = load_run(name, family=SPEC)
        assert run.trainer.model_name == name and run.model.config.parallel_config.world_size == 1
        preset = PRESETS[name.removesuffix("_lora").removesuffix("_txtcls")]
        head = run.model.config.is_classifier * 2 * preset.hidden_size
        assert run.model.config.parameter_count() == preset.parameter_count() + head
        again = load_run(yaml.safe_load(dump_run(run)), family=SPEC)
        assert dump_run(again) == dump_run(run)
        parallel = load_run(name, ["use_parallel=True"], family=SPEC)
        assert parallel.model.config.parallel_config.world_size == run.parallel_config.world_size


def test_run_files_are_short_and_say_nothing_without_effect():
    for path in SPEC.configs.glob("*.yaml"):
        assert len(path.read_text().splitlines()) <= 40
        assert no_effect(load_run(path, family=SPEC)) == []


def test_names_of_the_card_find_the_package():
    for name in ("gpt2", "gpt2_xl", "GPT2Config", "GPT2LMHeadModel"):
        assert find(name) is SPEC
