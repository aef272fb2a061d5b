"""Flags, key=value words and checkpoint directories become one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from lm_core.config.flags import (
    FLAGS,
    MORE_FLAGS,
    add_run_arguments,
    resolve_run,
    split_overrides,
    str2bool,
    world_size,
)
from lm_core.errors import ConfigError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("MS_WORKER_NUM", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(made)
    return made


@pytest.fixture
def resolve(family):
    """resolve(*words) -> RunConfig, as a verb does it."""

    def run(*words: str, **options):
        made = parser()
        rest, overrides = split_overrides(
            words, [flag for a in made._actions for flag in a.option_strings]
        )
        args, more = made.parse_known_args(rest)
        return resolve_run(family, args, [*overrides, *more], **options)

    return run


def test_a_flag_by_another_name(resolve):
    run = resolve("--config", "toy", "--train_data", "d")
    assert run.train_dataset.data_loader.dataset_dir == "d"


@pytest.mark.parametrize("flag, key, _metavar, _help", FLAGS + MORE_FLAGS)
def test_every_flag_sets_its_key(resolve, flag, key, _metavar, _help):
    values = {
        "load_checkpoint": "x",
        "train_dataset_dir": "d",
        "eval_dataset_dir": "2024",
        "epochs": 7,
        "batch_size": 9,
        "output_dir": "o",
        "load_adapter": "a",
        "resume_training": True,
        "auto_trans_ckpt": True,
        "use_parallel": False,
        "device_id": 3,
        "seed": 5,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "do_eval": True,
        "num_samples": 8,
        "device_target": "CPU",
        "mode": 1,
        "run_mode": "train",
        "src_strategy_path_or_dir": "s",
        "only_save_strategy": True,
        "sink_mode": True,
        "profile": True,
        "remote_save_url": "u",
    }
    run = resolve("--config", "toy", f"--{flag}", str(values[flag]))
    found = run
    for part in key.split("."):
        found = getattr(found, part)
    assert found == values[flag]
    assert run.origin(key) == f"--{flag}"


def test_flags_beat_the_file_and_words_beat_flags(resolve):
    run = resolve("--config", "toy", "--epochs", "3", "runner_config.epochs=4", "--seed", "1")
    assert run.runner_config.epochs == 4 and run.seed == 1
    assert resolve("--config", "toy", "--epochs", "3").runner_config.epochs == 3
    assert resolve("--config", "toy").runner_config.epochs == 2


@pytest.mark.parametrize(
    "words",
    [
        ["lr_schedule.total_steps=-1", "output_dir=a=b"],
        ["--lr_schedule.total_steps=-1", "--output_dir=a=b"],
        ["--lr_schedule.total_steps", "-1", "--output_dir", "a=b"],
        ["--options", "lr_schedule.total_steps=-1", "output_dir=a=b"],
    ],
)
def test_all_ways_to_set_a_key(resolve, words):
    run = resolve("--config", "toy", *words)
    assert run.lr_schedule.total_steps == -1 and run.output_dir == "a=b"


def test_top_level_keys_without_a_flag(resolve):
    run = resolve(
        "--config",
        "toy",
        "--layer_decay",
        "0.5",
        "--auto_tune=True",
        "--micro_batch_interleave_num",
        "2",
    )
    assert (run.layer_decay, run.auto_tune, run.micro_batch_interleave_num) == (0.5, True, 2)


@pytest.mark.parametrize("word", ["1", "yes", "TRUE", "on", "True"])
def test_truth(resolve, word):
    assert str2bool(word) is True
    assert resolve("--config", "toy", "--do_eval", word).do_eval is True


@pytest.mark.parametrize("word", ["0", "no", "FALSE", "off", "False"])
def test_untruth(resolve, word):
    assert str2bool(word) is False
    assert resolve("--config", "toy", "--do_eval", word).do_eval is False


def test_neither_true_nor_false(resolve):
    with pytest.raises(argparse.ArgumentTypeError, match="maybe"):
        str2bool("maybe")
    with pytest.raises(ConfigError, match=r"--do_eval: do_eval: is .*maybe.*true or false"):
        resolve("--config", "toy", "--do_eval", "maybe")


def test_wrong_flags_and_wrong_keys_come_together(resolve, family):
    (family.configs / "bad.yaml").write_text("sed: 1\n")
    with pytest.raises(ConfigError) as caught:
        resolve("--config", "bad", "--epochs", "three", "--batch_size", "0", "optimizer.beta=1")
    keys = [line.split(": ")[1] for line in caught.value.problems]
    assert sorted(keys) == [
        "optimizer.beta",
        "runner_config.batch_size",
        "runner_config.epochs",
        "sed",
    ]
    assert any(line.startswith("--epochs: ") for line in caught.value.problems)


def test_a_key_without_a_value():
    for words in (["--optimizer.beta1"], ["--optimizer.beta1", "--epochs", "3"]):
        with pytest.raises(ConfigError, match="--optimizer.beta1: has no value"):
            split_overrides(words, ["--epochs"])


def test_unknown_flags_are_left_for_argparse():
    assert split_overrides(["--bacth_size", "3", "-x", "y", "-1"], ["--epochs"]) == (
        ["--bacth_size", "3", "-x", "y", "-1"],
        [],
    )


def test_prompts(resolve):
    run = resolve("--config", "toy", "--predict_data", "1 + 1 = 2", "a=b", "null", "你好", "3")
    assert run.input_data == ["1 + 1 = 2", "a=b", "null", "你好", "3"]
    assert run.origin("input_data") == "--predict_data"


def test_keys_behind_prompts_are_keys(resolve):
    run = resolve(
        "--config",
        "toy",
        "--predict_data",
        "x.y=1",
        "hello",
        "model.model_config.top_k=1",
        "seed=3",
    )
    assert run.input_data == ["x.y=1", "hello", "seed=3"]  # without a dot it may well be a prompt
    assert run.model.config.top_k == 1


def test_adding_the_flags_twice_is_adding_them_once():
    made = parser()
    add_run_arguments(made)
    assert made.parse_args(["--epochs", "3"]).epochs == "3"


# Without --config.


def checkpoint(folder: Path, **values) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_our_checkpoint_says_what_it_is(resolve, family, tmp_path: Path):
    config = family.presets["toy"].copy(num_layers=3)
    folder = checkpoint(
        tmp_path / "ckpt", lm_model="toy", **config.model_dump(exclude={"parallel_config"})
    )
    run = resolve("--load_checkpoint", str(folder), "--epochs", "3", "model.model_config.top_k=1")
    assert run.model.config.num_layers == 3 and run.model.config.top_k == 1
    assert run.load_checkpoint == str(folder) and run.runner_config.epochs == 3
    assert run.origin("model.model_config.num_layers").endswith("config.json")


def test_a_published_checkpoint_says_what_it_is(resolve, tmp_path: Path):
    folder = checkpoint(tmp_path / "ckpt", model_type="toy_hf", n_embd=16, n_layer=2)
    run = resolve("--load_checkpoint", str(folder))
    assert (run.model.config.hidden_size, run.model.config.num_layers) == (16, 2)


def test_a_preset_as_checkpoint_says_what_it_is(resolve):
    assert resolve("--load_checkpoint", "toy_big").model.config.hidden_size == 128


def test_config_beats_what_a_checkpoint_says(resolve, tmp_path: Path):
    folder = checkpoint(tmp_path / "ckpt", model_type="toy_hf", n_embd=16, n_layer=2)
    assert (
        resolve("--config", "toy", "--load_checkpoint", str(folder)).model.config.hidden_size == 64
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lm_model": "other"}, "holds a model of lm-other"),
        ({"model_type": "llama"}, "lm-toy loads toy_hf"),
        ({}, "lm-toy loads toy_hf"),
        ({"lm_model": "toy", "num_layer": 3}, "did you mean num_layers?"),
    ],
)
def test_a_checkpoint_of_something_else(resolve, tmp_path: Path, values, said):
    folder = checkpoint(tmp_path / "ckpt", **values)
    with pytest.raises(ConfigError) as caught:
        resolve("--load_checkpoint", str(folder))
    assert said in str(caught.value) and str(folder / "config.json") in str(caught.value)


def test_sections_of_the_run_that_made_a_checkpoint(resolve, family, tmp_path: Path):
    """An evaluation measures what the training measured, unless a run is named."""
    config = family.presets["toy"].copy(num_layers=3)
    made = checkpoint(
        tmp_path / "ckpt", lm_model="toy", **config.model_dump(exclude={"parallel_config"})
    )
    (made / "run.yaml").write_text(
        "seed: 5\nmetric: [{type: accuracy}]\neval_dataset: {eod_reset: True, eod_token_id: 7}\n"
    )
    words = ("--load_checkpoint", str(made))
    kept = resolve(*words, "--eval_dataset_dir", "mine", kept=("eval_dataset", "metric"))
    assert (kept.eval_dataset.eod_reset, kept.eval_dataset.eod_token_id) == (True, 7)
    assert kept.eval_dataset.data_loader.dataset_dir == "mine"
    assert [item.type for item in kept.metric] == ["accuracy"]
    assert kept.seed == resolve(*words).seed
    assert not resolve(*words).eval_dataset.eod_reset
    named = resolve("--config", "toy", *words, kept=("eval_dataset", "metric"))
    assert not named.eval_dataset.eod_reset
    (made / "run.yaml").unlink()
    assert not resolve(*words, kept=("eval_dataset",)).eval_dataset.eod_reset


def test_nothing_says_what_the_model_is(resolve, tmp_path: Path):
    for words in ((), ("--load_checkpoint", str(tmp_path)), ("--load_checkpoint", "no/such")):
        with pytest.raises(ConfigError, match="config: is missing.*--config with one of toy"):
            resolve(*words)


@pytest.mark.parametrize(
    ("damaged", "says"),
    [(b"{", "not JSON"), (b"\xff\xfe{", "not JSON"), (b"[1]", "not a JSON object")],
)
def test_damaged_config_json(resolve, tmp_path: Path, damaged, says):
    (tmp_path / "config.json").write_bytes(damaged)
    with pytest.raises(ConfigError, match=says):
        resolve("--load_checkpoint", str(tmp_path))


# Processes.


def test_the_number_of_processes(monkeypatch, resolve):
    assert world_size() == 1
    monkeypatch.setenv("RANK_SIZE", "4")
    assert world_size() == 4
    words = ["--config", "toy", "--use_parallel", "True", "parallel_config.data_parallel=2"]
    with pytest.raises(ConfigError, match="= 2 processes, but 4 processes run"):
        resolve(*words)
    assert (
        resolve(*words, "parallel_config.model_parallel=2").model.config.parallel_config.world_size
        == 4
    )
    monkeypatch.setenv("MS_WORKER_NUM", "1")
    assert world_size() == 1
    with pytest.raises(ConfigError, match="--use_parallel False"):
        resolve(*words)
