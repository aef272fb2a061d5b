"""Overrides, refusals and what they say, and runs written and read again."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_core.config.explain import spell
from lm_core.config.layers import Override
from lm_core.config.load import dump_run, load_run
from lm_core.errors import ConfigError

FULL: dict[str, Any] = {
    "seed": 7,
    "output_dir": "out",
    "use_parallel": False,
    "context": {"mode": 0, "device_id": 1},
    "runner_config": {"epochs": 3, "batch_size": 4, "sink_mode": False, "max_steps": 9},
    "runner_wrapper": {
        "use_clip_grad": True,
        "scale_sense": {"type": "dynamic", "scale_window": 10},
    },
    "optimizer": {"type": "AdamW", "beta1": 0.9, "eps": 1e-8, "weight_decay": 0.1},
    "lr_schedule": {"type": "linear", "learning_rate": 1e-3, "warmup_steps": 2},
    "callbacks": [
        {"type": "MFLossMonitor", "per_print_times": 5},
        {"type": "CheckpointMointor", "keep_checkpoint_max": 2},
    ],
    "metric": [{"type": "PerplexityMetric"}],
    "parallel_config": {"data_parallel": 1, "vocab_emb_dp": True},
    "recompute_config": {"recompute": False},
    "trainer": {"type": "text_generation", "model_name": "toy"},
    "model": {
        "model_config": {
            "num_layers": 2,
            "top_p": 0.9,
            "use_past": True,
            "pet_config": {"lora_rank": 4},
        },
        "arch": {"type": "ToyLM"},
    },
    "processor": {"tokenizer": {"vocab_file": "v.json"}},
    "train_dataset": {
        "data_loader": {"dataset_dir": "d", "shuffle": True},
        "input_columns": ["input_ids"],
    },
}
"""A run with something in every section."""


def leaves(values: Any, path: tuple = ()) -> list[tuple]:
    if isinstance(values, dict):
        return [found for key, value in values.items() for found in leaves(value, (*path, key))]
    if isinstance(values, list) and values and isinstance(values[0], dict):
        return [found for i, value in enumerate(values) for found in leaves(value, (*path, i))]
    return [path]


def put(values: Any, path: tuple, value: Any) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def get(values: Any, path: tuple) -> Any:
    for part in path:
        values = values[part]
    return values


def copy(values: Any) -> Any:
    return yaml.safe_load(yaml.safe_dump(values))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_same_mapping_can_be_loaded_again(load):
    source = copy(FULL)
    load(source, "seed=9", "callbacks.0.per_print_times=1")
    assert source == FULL


# Overrides.


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("runner_config.epochs=5", "runner_config.epochs", 5),
        ("--runner_config.epochs=5", "runner_config.epochs", 5),
        ("optimizer.eps=1e-6", "optimizer.eps", 1e-6),
        ("output_dir=2024", "output_dir", "2024"),
        ("output_dir=a=b=c", "output_dir", "a=b=c"),
        ("output_dir=true", "output_dir", "true"),
        ("output_dir=[x]", "output_dir", "[x]"),
        ("load_checkpoint=", "load_checkpoint", ""),
        ("load_checkpoint=*.ckpt", "load_checkpoint", "*.ckpt"),
        ("use_parallel=1", "use_parallel", True),
        ("use_parallel=no", "use_parallel", False),
        ("resume_training=true", "resume_training", True),
        ("resume_training=300", "resume_training", "300"),
        ("resume_training=out/step_3", "resume_training", "out/step_3"),
        ("train_dataset.input_columns=[a, b]", "train_dataset.input_columns", ["a", "b"]),
        ("runner_config.max_steps=null", "runner_config.max_steps", None),
        ("train_dataset_task.dataset_config.batch_size=3", "train_dataset.batch_size", 3),
        ("model.model_config.eos_token_id=[1, 2]", "model.config.eos_token_id", [1, 2]),
        ("use_past=False", "model.config.use_past", False),
        ("max_grad_norm=2", "runner_wrapper.max_grad_norm", 2.0),
        ("seed=0", "seed", 0),
    ],
)
def test_overrides_are_typed_by_the_key(load, text, path, value):
    run = load(FULL, text)
    for part in path.split("."):
        run = getattr(run, part)
    assert run == value and type(run) is type(value)


def test_callbacks_are_addressed_by_place_or_name(load, problems):
    for key in (
        "callbacks.1",
        "callbacks[1]",
        "callbacks.CheckpointMonitor",
        "callbacks.CheckpointMointor",
        "callbacks.checkpoint",
    ):
        run = load(FULL, f"{key}.keep_checkpoint_max=9")
        assert run.checkpoint.keep_checkpoint_max == 9, key
        assert run.loss_monitor.per_print_times == 5
    assert load({}, "callbacks.MFLossMonitor.per_print_times=7").loss_monitor.per_print_times == 7
    (line,) = problems(FULL, "callbacks.2.prefix=x")
    assert line.startswith("command line: callbacks[2]: ")
    assert "MFLossMonitor, CheckpointMointor" in line


@pytest.mark.parametrize("text", ["epochs", "=3", "a b=3", "1=2", "", "--", "-x=1.."])
def test_what_is_no_override(text):
    if text == "-x=1..":
        assert Override.parse(text).path == ("x",)
        return
    with pytest.raises(ConfigError, match="not key=value"):
        Override.parse(text)


def test_an_override_below_a_plain_value(problems):
    (line,) = problems(FULL, "seed.x=3")
    assert line.startswith("command line: seed.x: seed is 7")


def test_a_section_overridden_after_its_key(load, problems):
    run = load(FULL, "optimizer.weight_decay=1", "output_dir=3", "optimizer={type: sgd}")
    assert (run.optimizer.type, run.optimizer.weight_decay, run.output_dir) == ("sgd", 0.0, "3")
    (line,) = problems(FULL, "optimizer.type=x", "optimizer=3")
    assert line == "command line: optimizer: is 3; must be a mapping (key: value)"


def test_overrides_from_a_program(family):
    run = load_run(
        FULL,
        {"runner_config.epochs": 8, "output_dir": "3"},
        family=family,
    )
    assert (run.runner_config.epochs, run.output_dir) == (8, "3")
    assert run.origin("output_dir") == "call"


# What is refused.


def test_every_problem_at_once_each_with_its_line(problems, tmp_path: Path):
    text = """\
seed: x
runner_config:
  epochs: 0
  batchsize: 4
optimizer: {typ: AdamW, beta1: 1.5}
model:
  model_config:
    num_heads: 7
    hiddensize: 3
lr_schedule: {warmup_steps: 10, total_steps: 5}
callbacks:
  - {type: MFLossMonitor, per_print_tims: 1}
"""
    path = write(tmp_path / "r.yaml", text)
    found = problems(path, "outputdir=x", "use_parallel=maybe")
    where = {line.split(": ")[1]: line for line in found}
    for key, line_number, said in [
        ("seed", 1, 'is "x" (text); must be a whole number >= 0 and < 4294967296'),
        ("runner_config.epochs", 3, "is 0; must be a whole number >= 1"),
        ("runner_config.batchsize", 4, "did you mean batch_size?"),
        ("optimizer.typ", 5, "did you mean type?"),
        ("optimizer.beta1", 5, "is 1.5; must be a number >= 0 and < 1"),
        (
            "model.model_config.num_heads",
            8,
            "7 does not divide hidden_size 64; use one of 1, 2, 4, 8, 16, 32, 64",
        ),
        ("model.model_config.hiddensize", 9, "did you mean hidden_size?"),
        ("lr_schedule.warmup_steps", 10, "must be less than 5"),
        ("callbacks[0].per_print_tims", 12, "did you mean per_print_times?"),
    ]:
        assert where[key].startswith(f"{path}:{line_number}: {key}: "), where[key]
        assert said in where[key], where[key]
    assert where["outputdir"] == "command line: outputdir: unknown key; did you mean output_dir?"
    assert where["use_parallel"].startswith("command line: use_parallel: ")
    assert len(found) == 11, found


@pytest.mark.parametrize("seed", range(4))
def test_a_misspelt_key_is_named_with_the_right_one(load, problems, seed):
    random_ = random.Random(seed)
    for path in leaves(FULL):
        if path == ("callbacks", 0, "type") or path == ("callbacks", 1, "type"):
            continue
        values, key = copy(FULL), path[-1]
        at = random_.randrange(1, len(key))
        wrong = random_.choice(
            [key[:at] + key[at + 1 :], key[:at] + "x" + key[at:], key[:at] + key[at - 1] + key[at:]]
        )
        if wrong in key_words() or len(key) < 4:
            continue
        place = get(values, path[:-1])
        place[wrong] = place.pop(key)
        (line,) = problems(values)
        assert line.startswith(
            f"run: {spell((*path[:-1], wrong))}: unknown key; did you mean {key}?"
        ), line


def key_words() -> set[str]:
    return {str(path[-1]) for path in leaves(FULL)}


WRONG = {
    "text": lambda r: "".join(r.choices(string.ascii_lowercase, k=5)),
    "list": lambda r: [None, {}],
    "mapping": lambda r: {"a": 1},
    "number": lambda r: -1.5,
    "truth": lambda r: r.random() < 0.5,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_is_named_and_nothing_else(load, problems, kind):
    random_ = random.Random(3)
    for path in leaves(FULL):
        before = get(FULL, path)
        fits = {str: ("text",), bool: ("truth",), list: ("list",)}.get(type(before), ())
        if kind in fits or (path[-1] == "vocab_file" and kind == "text"):
            continue
        values = copy(FULL)
        put(values, path, WRONG[kind](random_))
        lines = problems(values)
        assert len(lines) == 1, lines
        shown = spell(path[:-1] if path[0] == "callbacks" and path[-1] == "type" else path)
        assert lines[0].startswith(f"run: {shown}") and "; must be " in lines[0], lines[0]


@pytest.mark.parametrize("section", [key for key, value in FULL.items() if isinstance(value, dict)])
@pytest.mark.parametrize("value", [3, "x", [1], True])
def test_a_section_that_is_no_mapping(problems, section, value):
    (line,) = problems({**FULL, section: value})
    assert line.startswith(f"run: {section}: is ") and line.endswith(
        "must be a mapping (key: value)"
    )


def test_a_key_in_the_wrong_section_is_sent_home(problems):
    assert problems({"batch_size": 3}) == [
        "run: batch_size: unknown key; did you mean runner_config.batch_size?"
    ]
    (line,) = problems({"runner_config": {"learning_rate": 1e-3}})
    assert line.endswith("did you mean optimizer.learning_rate?")
    (line,) = problems({"model": {"seq_length": 3}})
    assert line.endswith("did you mean model.model_config.seq_length?")


def test_presets(load, problems):
    run = load({"model": {"model_config": {"preset": "toy_big", "num_layers": 3}}})
    assert (run.model.config.hidden_size, run.model.config.num_layers) == (128, 3)
    assert run.trainer.model_name == "toy_big"
    assert run.origin("model.model_config.hidden_size") == "preset toy_big"
    assert run.origin("model.model_config.num_layers") == "run"
    assert load({"trainer": {"model_name": "toy_big"}}).model.config.hidden_size == 128
    assert load({"checkpoint_name_or_path": "toy_big"}).model.config.hidden_size == 128
    assert load({"trainer": {"model_name": "something_lora"}}).model.config.hidden_size == 64
    (line,) = problems({"model": {"model_config": {"preset": "toy_bigg"}}})
    assert (
        line
        == 'run: model.model_config.preset: "toy_bigg" (text) is no preset; did you mean toy_big?'
    )
    (line,) = problems({"model": {"model_config": {"preset": ["a"]}}})
    assert "is no preset" in line


def test_presets_are_not_changed_by_runs(load, family):
    before = {name: preset.model_dump() for name, preset in family.presets.items()}
    run = load({"model": {"model_config": {"preset": "toy"}}}, "model.model_config.top_k=1")
    run.model.config.use_past = False
    run.model.config.parallel_config.data_parallel = 4
    assert {name: preset.model_dump() for name, preset in family.presets.items()} == before


# What is written is what was read.


def test_a_dump_is_read_back_to_the_same_run(load):
    for source in (
        {},
        FULL,
        {"use_parallel": True, "parallel_config": {"data_parallel": 2, "model_parallel": 2}},
    ):
        run = load(source)
        again = load(yaml.safe_load(dump_run(run)))
        assert again.model_dump() == run.model_dump()
        assert again.model.config == run.model.config
        assert dump_run(again) == dump_run(run)


def test_the_metric_of_a_dump_is_changed_like_that_of_a_run_file(load):
    for values in ({}, FULL, yaml.safe_load(dump_run(load(FULL)))):
        for key in ("metric.type", "metric.0.type"):
            if key == "metric.type" or "metric" in values:
                run = load(values, f"{key}=PromptAccMetric", "metric.num_labels=3")
                assert [(item.type, item.num_labels) for item in run.metric] == [
                    ("prompt_accuracy", 3)
                ]
    by_name = load(FULL, "metric.PerplexityMetric.type=ADGENMetric")
    assert [item.type for item in by_name.metric] == ["adgen"]
    two = {**FULL, "metric": [{"type": "adgen"}, {"type": "perplexity"}]}
    with pytest.raises(ConfigError, match="metric.type: the list has no such item; use 0 to 1, or"):
        load(two, "metric.type=PromptAccMetric")


def test_a_dump_holds_everything(load, tmp_path: Path):
    values = yaml.safe_load(dump_run(load(FULL)))
    assert values["model"]["model_config"]["hidden_size"] == 64
    assert values["optimizer"]["type"] == "adamw" and values["runner_config"]["sink_size"] == -1
    path = write(tmp_path / "dump.yaml", dump_run(load(FULL, "input_data=[你好, 'a: b']")))
    assert load(path).input_data == ["你好", "a: b"]
