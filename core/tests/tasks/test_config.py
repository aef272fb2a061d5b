"""`lm config`: every value, where it comes from, and a run file again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lm_core import cli
from lm_core.config.load import dump_run
from lm_core.spec import read_run


def shown(capsys, *words: str) -> str:
    assert cli.main(["config", *words]) == 0
    return capsys.readouterr().out


def origins(text: str) -> dict[str, str]:
    """The comments by key; the first section that has a key counts."""
    lines = [line for line in reversed(text.splitlines()) if "#" in line]
    return {line.split(":")[0].strip(" -"): line.rpartition("#")[2].strip() for line in lines}


def test_each_value_says_where_it_comes_from(look, capsys):
    text = shown(capsys, "toy_big", "--epochs", "3", "seed=4")
    found = origins(text)
    assert found["beta1"].endswith("toy_big.yaml:4")
    assert found["batch_size"].endswith("toy.yaml:3")
    assert found["epochs"] == "--epochs" and found["seed"] == "command line"
    assert found["hidden_size"] == "preset toy_big"
    assert found["beta2"] == "default" and found["num_layers"] == "default"


@pytest.mark.parametrize("more", [[], ["--changed"]])
def test_what_is_printed_is_the_same_run(look, capsys, more):
    words = ["toy_big", "seed=4", "callbacks.0.per_print_times=7", 'input_data="a\\n # b"']
    text = shown(capsys, *words, *more)
    Path("again.yaml").write_text(text)
    assert dump_run(read_run("again.yaml")) == dump_run(read_run("toy_big", words[1:]))
    first = yaml.safe_load(text)["callbacks"][0]
    assert (first["per_print_times"], first["type"]) == (7, "loss_monitor")


def test_changed_leaves_defaults_out(look, capsys):
    text = shown(capsys, "toy_big", "--changed", "seed=0")
    assert "# default" not in text
    assert yaml.safe_load(text) == {
        "seed": 0,
        "runner_config": {"batch_size": 2},
        "optimizer": {"beta1": 0.8},
        "metric": [{"type": "perplexity"}],
        "trainer": {"model_name": "toy_big"},
        "model": {"model_config": {"hidden_size": 16}},
    }


def test_keys_without_effect_say_so(look, capsys):
    assert "# command line, without effect here" in shown(capsys, "toy", "auto_tune=True")


def test_the_model_is_found_in_the_run(look, capsys):
    Path("mine.yaml").write_text("base: toy_big\nseed: 9\n")
    expected = shown(capsys, "toy", "--config", "mine.yaml")
    assert "seed: 9" in expected and "mine.yaml:2" in expected
    assert shown(capsys, "mine.yaml") == expected
    assert shown(capsys, "--config", "mine.yaml") == expected
    assert shown(capsys, "--config=mine.yaml") == expected
    assert "seed: 7" in shown(capsys, "seed=7", "--config", "mine.yaml")
    assert shown(capsys, "toy") == shown(capsys, "--config", "toy")


def test_a_run_for_many_processes_can_be_looked_at(look, capsys):
    text = shown(capsys, "toy", "use_parallel=True", "parallel_config.data_parallel=8")
    assert "data_parallel: 8" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "'nothing.yaml' is neither a file nor one of toy, toy_big"),
        (["toi"], "did you mean toy?"),
        (["--changed"], "the model is missing before --changed"),
        (["seed=1"], "no installed package knows 'seed=1'"),
        (["toy.yaml", "--config", "toy"], "no installed package knows 'toy.yaml'"),
        (["--config"], "the model is missing before --config"),
        (["toy", "sed=1"], "did you mean seed?"),
        (["stranger.yaml"], "no installed package knows 'stranger'"),
    ],
)
def test_wrong_words(look, capsys, words, said):
    Path("stranger.yaml").write_text("trainer: {model_name: stranger}\n")
    assert cli.main(["config", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""
    assert all(line.startswith("error: ") for line in captured.err.splitlines())
