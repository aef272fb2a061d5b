"""Model configurations that programs make and change: checked like run files."""

from __future__ import annotations

import pytest

from lm_core.config.model import LoraConfig, ModelConfig
from lm_core.errors import ConfigError, LmError


def toy(**values) -> ModelConfig:
    return ModelConfig(
        **{
            "vocab_size": 10,
            "hidden_size": 8,
            "num_layers": 1,
            "num_heads": 2,
            "seq_length": 4,
            **values,
        }
    )


def test_wrong_fields_are_config_errors():
    with pytest.raises(ConfigError) as caught:
        toy(num_heads="2", hiden_act=3, pet_config={"lora_rank": 0}, parallel_config={"x": 1})
    assert [line.split(": ")[0] for line in caught.value.problems] == [
        "num_heads", "pet_config.lora_rank", "parallel_config.x", "hiden_act",
    ]  # fmt: skip
    assert isinstance(caught.value, LmError) and caught.value.__cause__ is None


def test_contradicting_fields_are_config_errors():
    with pytest.raises(ConfigError) as caught:
        toy(num_heads=3, eos_token_id=[9, 10], pad_token_id=11)
    assert caught.value.problems == (
        "num_heads: 3 does not divide hidden_size 8; use one of 1, 2, 4, 8",
        "eos_token_id: 10 is outside the vocabulary of 10; use a token id from 0 to 9",
        "pad_token_id: 11 is outside the vocabulary of 10; use a token id from 0 to 9",
    )


def test_assignment_is_checked():
    config = toy()
    config.use_past = False
    config.top_p = 1  # a whole number is a number
    config.parallel_config.data_parallel = 4
    for change, said in [
        (lambda: setattr(config, "use_pst", True), "did you mean use_past?"),
        (lambda: setattr(config, "top_k", 1.5), "top_k: is 1.5"),
        (lambda: setattr(config.parallel_config, "data_paralel", 1), "did you mean data_parallel?"),
        (
            lambda: setattr(config.parallel_config, "data_parallel", 0),
            "must be a whole number >= 1",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            change()
        assert said in str(caught.value)
    assert (config.use_past, config.top_p, config.top_k, config.parallel_config.data_parallel) == (
        False,
        1.0,
        50,
        4,
    )


def test_a_copy_keeps_all_changes_and_shares_nothing():
    config = toy(top_k=3)
    config.parallel_config.data_parallel = 4
    config.pet_config = LoraConfig(lora_rank=2)
    copied = config.copy({"top_p": 0.5}, do_sample=True)
    assert (copied.top_k, copied.top_p, copied.do_sample) == (3, 0.5, True)
    assert (
        copied.parallel_config == config.parallel_config and copied.pet_config == config.pet_config
    )
    copied.parallel_config.data_parallel = 2
    assert config.parallel_config.data_parallel == 4
    assert toy().copy() == toy() and toy().parallel_config is not toy().parallel_config
    with pytest.raises(ConfigError, match="did you mean seq_length"):
        config.copy(seq_len=3)


def test_ends_of_text():
    assert toy().eos_token_ids == [] and toy(eos_token_id=0).eos_token_ids == [0]
    assert (
        toy(eos_token_id=[3, 4]).eos_token_ids == [3, 4]
        and toy(eos_token_id=[]).eos_token_ids == []
    )
