"""Files that are based on files: what is found, what wins, where the cards' short forms go."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_core.config.layers import read_layers


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_base_file_flags(load, tmp_path: Path):
    write(tmp_path / "a.yaml", "base: toy\nrunner_config: {batch_size: 3}\nseed: 1\n")
    write(tmp_path / "b.yaml", "base: a.yaml\nseed: 2\noutput_dir: x\n")
    run = load(tmp_path / "b.yaml", "output_dir=y")
    assert (run.runner_config.epochs, run.runner_config.batch_size, run.seed) == (2, 3, 2)
    assert run.output_dir == "y" and run.context.device_id == 0
    assert run.origin("runner_config.epochs").endswith("toy.yaml:2")
    assert run.origin("runner_config.batch_size").endswith("a.yaml:2")
    assert run.origin("seed").endswith("b.yaml:2")
    assert run.origin("output_dir") == "command line"
    assert run.origin("context.device_id") == "default"
    assert run.origin("optimizer.beta1") == "default"


def test_a_base_is_found_beside_the_file_not_beside_the_user(load, tmp_path: Path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "parent.yaml", "seed: 5\n")
    write(tmp_path / "sub" / "child.yaml", "base: parent\n")
    monkeypatch.chdir(tmp_path)
    assert load("sub/child.yaml").seed == 5


def test_lists_are_replaced_and_mappings_merged(load, tmp_path: Path):
    write(
        tmp_path / "a.yaml",
        "callbacks: [{type: LossMonitor}, {type: ObsMonitor}]\noptimizer: {beta1: 0.8}\n",
    )
    write(
        tmp_path / "b.yaml", "base: a\ncallbacks: [{type: LossMonitor}]\noptimizer: {beta2: 0.7}\n"
    )
    run = load(tmp_path / "b.yaml")
    assert [item.type for item in run.callbacks] == ["loss_monitor"]
    assert (run.optimizer.beta1, run.optimizer.beta2) == (0.8, 0.7)


def test_null_takes_away_what_a_base_gave(load, tmp_path: Path):
    write(tmp_path / "a.yaml", "model: {model_config: {pet_config: {lora_rank: 2}}}\n")
    write(tmp_path / "b.yaml", "base: a\nmodel: {model_config: {pet_config: null}}\n")
    assert load(tmp_path / "a.yaml").model.config.pet_config.lora_rank == 2
    assert load(tmp_path / "b.yaml").model.config.pet_config is None


def test_warm_up_said_in_another_way_displaces_that_of_the_base(load, problems, tmp_path: Path):
    write(tmp_path / "a.yaml", "lr_schedule: {warmup_ratio: 0.1}\n")
    write(tmp_path / "b.yaml", "base: a\nlr_schedule: {warmup_steps: 7}\n")
    run = load(tmp_path / "b.yaml")
    assert (run.lr_schedule.warmup_steps, run.lr_schedule.warmup_ratio) == (7, None)
    assert run.origin("lr_schedule.warmup_ratio") == "default"
    run = load(tmp_path / "b.yaml", "lr_schedule.warmup_epochs=0.5")
    assert (run.lr_schedule.warmup_steps, run.lr_schedule.warmup_epochs) == (0, 0.5)
    both = ("lr_schedule.warmup_epochs=0.5", "lr_schedule.warmup_steps=3")
    (line,) = problems(tmp_path / "a.yaml", *both)
    assert "warmup_epochs: is given beside warmup_steps" in line
    write(tmp_path / "c.yaml", "lr_schedule: {warmup_ratio: 0.1, warmup_steps: 7}\n")
    assert len(problems(tmp_path / "c.yaml")) == 1


def test_a_circle_of_bases(problems, tmp_path: Path):
    write(tmp_path / "a.yaml", "base: b\n")
    write(tmp_path / "b.yaml", "seed: 1\nbase: a\n")
    (line,) = problems(tmp_path / "a.yaml")
    assert "b.yaml:2: base:" in line and "circle" in line


@pytest.mark.parametrize(
    ("base", "said"),
    [("3", "must be the name"), ("[a, b]", "must be the name"), ("tiy", "did you mean toy?")],
)
def test_a_base_that_is_none(problems, tmp_path: Path, base, said):
    (line,) = problems(write(tmp_path / "a.yaml", f"seed: 1\nbase: {base}\n"))
    assert "a.yaml:2: base:" in line and said in line


def test_a_run_is_found_by_name_or_path(load, problems, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()  # a folder of the same name does not hide the packaged run
    assert load("toy").runner_config.epochs == 2
    write(tmp_path / "mine.yaml", "seed: 3\n")
    assert load("mine.yaml").seed == load("mine").seed == load(tmp_path / "mine.yaml").seed == 3
    assert problems("configs/toy/run_toyy.yaml")[0].endswith("did you mean toy?")
    assert "neither a file" in problems("nothing_like_it")[0]


def test_the_alias_of_the_cards(load, tmp_path: Path):
    text = """\
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: d}
train_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset
eval_dataset_task: {type: KeyWordGenDataset, dataset_config: {batch_size: 5}}
"""
    run = load(write(tmp_path / "r.yaml", text), "train_dataset.data_loader.dataset_dir=e")
    assert run.train_dataset.data_loader.dataset_dir == "e"
    assert run.train_dataset_task.type == "causal_lm"
    assert run.eval_dataset.batch_size == 5 and run.eval_dataset_task.type == "keyword_generation"


def test_an_alias_that_contradicts_the_section(problems):
    source = {
        "train_dataset": {"batch_size": 1},
        "train_dataset_task": {"dataset_config": {"batch_size": 2}},
    }
    (line,) = problems(source)
    assert line.startswith("run: train_dataset_task.dataset_config: differs from train_dataset")


def test_short_keys_of_the_cards_find_their_section(load, problems, tmp_path: Path):
    text = """\
use_past: False
vocab_file: 'v.model'
max_device_memory: '31GB'
top_k: 3
max_grad_norm: 2.0
"""
    run = load(write(tmp_path / "r.yaml", text))
    config = run.model.config
    assert (config.use_past, config.top_k) == (False, 3)
    assert run.processor.tokenizer.vocab_file == "v.model"
    assert run.context.max_device_memory == "31GB" and run.runner_wrapper.max_grad_norm == 2.0
    assert run.origin("model.model_config.top_k").endswith("r.yaml:4")
    (line,) = problems({"top_k": 3, "model": {"model_config": {"top_k": 4}}})
    assert line == "run: top_k: is given here and as model.model_config.top_k; keep one"
    (line,) = problems(write(tmp_path / "w.yaml", "\ntop_k: x\n"))
    assert line.startswith(f"{tmp_path / 'w.yaml'}:2: model.model_config.top_k: ")


def test_layers_are_not_shared_between_readings(family):
    first = read_layers("toy", ["runner_config.epochs=9"], [family.configs])
    second = read_layers("toy", (), [family.configs])
    assert (
        first.values["runner_config"]["epochs"] == 9
        and second.values["runner_config"]["epochs"] == 2
    )
