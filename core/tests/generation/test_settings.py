"""GenerationConfig: where settings come from, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig


def test_the_model_decides_what_the_call_does_not(fake):
    config = fake(
        do_sample=True, top_k=5, top_p=0.85, repetition_penalty=1.05, eos_token_id=[2, 3]
    ).config
    settings = GenerationConfig.from_model(config, temperature=0.5).completed(config)
    assert settings.do_sample is True
    assert (settings.top_k, settings.top_p, settings.temperature) == (5, 0.85, 0.5)
    assert settings.repetition_penalty == 1.05
    assert settings.eos_ids == (2, 3)
    assert (settings.max_length, settings.max_new_tokens) == (None, DEFAULT_NEW_TOKENS)


@pytest.mark.parametrize(
    ("model", "call", "expected"),
    [
        ({"max_decode_length": 12}, {}, (12, None)),
        ({"max_decode_length": 12, "max_length": 9}, {}, (9, None)),
        ({"max_decode_length": 12, "max_new_tokens": 3}, {}, (12, 3)),
        ({"max_decode_length": 12, "max_new_tokens": 3}, {"max_length": 20}, (20, None)),
        ({"max_decode_length": 12}, {"max_new_tokens": 7}, (None, 7)),
        ({}, {"max_length": 8, "max_new_tokens": 7}, (8, 7)),
        ({"max_new_tokens": 3}, {"max_length": None}, (None, 3)),
    ],
)
def test_lengths(fake, model, call, expected):
    config = fake(**model).config
    settings = GenerationConfig.from_model(config, **call).completed(config)
    assert (settings.max_length, settings.max_new_tokens) == expected


def test_a_later_length_replaces_an_earlier_one():
    pipeline_default = GenerationConfig(max_length=20)
    assert pipeline_default.replace(max_new_tokens=50).max_length is None
    assert pipeline_default.replace(top_k=3).max_length == 20


@pytest.mark.parametrize(
    ("given", "expected"), [(20, True), (0, False), (np.True_, True), ("yes", True)]
)
def test_do_sample_takes_any_truth_value(given, expected):
    assert GenerationConfig(do_sample=given).do_sample is expected


@pytest.mark.parametrize(
    ("eos", "expected"),
    [
        (7, (7,)),
        ([7, 8], (7, 8)),
        ([], ()),
        ((1,), (1,)),
        (np.int32(4), (4,)),
        (np.array([4, 5]), (4, 5)),
    ],
)
def test_eos(fake, eos, expected):
    config = fake(eos_token_id=9).config
    assert GenerationConfig(eos_token_id=eos).completed(config).eos_ids == expected


def test_none_means_the_eos_of_the_model(fake):
    assert GenerationConfig().completed(fake(eos_token_id=9).config).eos_ids == (9,)
    assert GenerationConfig().completed(fake().config).eos_ids == ()


def test_all_wrong_values_are_reported_together():
    with pytest.raises(GenerationError) as error:
        GenerationConfig(
            max_length=0, max_new_tokens=1.5, do_sample=True, top_k=-1, top_p=1.5, temperature=0,
            repetition_penalty=0, num_beams=0, length_penalty=float("nan"), early_stopping="maybe",
            eos_token_id="</s>", pad_token_id=1.0, seed=-1, truncation="right",
        )  # fmt: skip
    names = [problem.partition(":")[0] for problem in error.value.problems]
    assert sorted(names) == sorted([
        "max_length", "max_new_tokens", "top_k", "top_p", "temperature", "repetition_penalty",
        "num_beams", "length_penalty", "early_stopping", "eos_token_id", "pad_token_id", "seed",
        "truncation",
    ])  # fmt: skip
    assert all("must be" in problem and "\n" not in problem for problem in error.value.problems)


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_p": -0.1}, {"top_p": float("nan")}, {"temperature": float("inf")},
        {"temperature": True}, {"max_length": True}, {"max_new_tokens": "7"}, {"seed": 1.0},
        {"eos_token_id": [1, "2"]}, {"num_beams": 2.0}, {"do_sample": True, "temperature": -1.0},
        {"do_sample": True, "num_beams": 2}, {"repetition_penalty": -1},
    ],
)  # fmt: skip
def test_one_wrong_value(wrong):
    with pytest.raises(GenerationError) as error:
        GenerationConfig(**wrong)
    assert len(error.value.problems) == 1
    assert any(name in str(error.value) for name in wrong)


@pytest.mark.parametrize(
    "fine",
    [
        {"top_p": 0.0},
        {"top_p": 1},
        {"top_k": 0},
        {"temperature": 0},
        {"seed": 0},
        {"seed": 2**70},
        {"top_k": np.int64(3)},
    ],
)
def test_values_of_the_cards(fine):
    settings = GenerationConfig(**fine)
    assert all(getattr(settings, name) == value for name, value in fine.items())


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(GenerationError, match=r"max_new_token: .*did you mean max_new_tokens\?"):
        GenerationConfig().replace(max_new_token=3)
    with pytest.raises(GenerationError) as error:
        GenerationConfig().replace(topp=0.5, tempreature=1.0)
    assert [line.rpartition(" ")[2] for line in error.value.problems] == ["top_p?", "temperature?"]


def test_token_ids_outside_the_vocabulary(fake):
    config = fake(vocab=10).config
    with pytest.raises(GenerationError) as error:
        GenerationConfig(eos_token_id=[3, 10, -1], pad_token_id=99).completed(config)
    assert [problem.split()[1] for problem in error.value.problems] == ["10", "-1", "99"]
    assert "[] to never stop" in error.value.problems[0]


def test_none_changes_nothing():
    settings = GenerationConfig(top_k=3, max_length=9, seed=1, eos_token_id=[2])
    nothing = dict.fromkeys(("top_k", "max_length", "max_new_tokens", "seed", "eos_token_id"))
    assert settings.replace(**nothing) == settings
