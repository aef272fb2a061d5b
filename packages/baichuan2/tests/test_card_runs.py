"""Every value of every run file of the Baichuan 2 card is accepted and kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cards import Card, kept, places, written

from lm_baichuan2 import SPEC
from lm_baichuan2.config import PRESETS
from lm_core import spec as registry
from lm_core.cli import run_verb
from lm_core.config.checks import no_effect
from lm_core.config.load import load_run
from lm_core.errors import ConfigError
from lm_core.spec import read_run

HERE = Path(__file__).parent
CARD = Card.read(HERE / "card" / "baichuan2.yaml")
PACKAGED = {
    "baichuan2_7b": "baichuan2_7b_910b",
    "baichuan2_7b_4096": "baichuan2_7b_4096_910b",
    "baichuan2_7b_lora": "baichuan2_7b_lora_910b",
    "baichuan2_13b": "baichuan2_13b_910b",
    "baichuan2_13b_4096": "baichuan2_13b_4096_910b",
    "baichuan2_13b_lora": "baichuan2_13b_lora_910b",
}
"""Our runs, and the card's for the newer machines, whose layouts they have."""


@pytest.mark.parametrize("name", CARD.files)
def test_run_files_load_value_for_value(name: str, tmp_path: Path):
    """And the network is the one that the file names, whatever its configuration is called."""
    run = kept(CARD.run(name), SPEC, tmp_path)
    config, size = run.model.config, "7b" if "7b" in name else "13b"
    preset = PRESETS[f"baichuan2_{size}"]
    assert registry.of_run(written(tmp_path, CARD.run(name))) is SPEC
    assert config.position_embedding == preset.position_embedding
    assert config.parameter_count() == preset.parameter_count()
    assert config.ffn_size == preset.ffn_size


@pytest.mark.parametrize("name", PACKAGED)
def test_the_packaged_runs_are_those_of_the_card(name: str, tmp_path: Path):
    """What decides the result of a run.

    Not kept: the length of answers, 64 tokens in some files, which would cut conversations.
    """
    theirs = load_run(written(tmp_path, CARD.run(PACKAGED[name])), family=SPEC)
    ours = read_run(name)
    for section in ("optimizer", "lr_schedule", "runner_wrapper"):
        assert getattr(ours, section) == getattr(theirs, section), section
    assert ours.recompute_config.recompute == theirs.recompute_config.recompute
    for key in ("epochs", "batch_size"):
        assert getattr(ours.runner_config, key) == getattr(theirs.runner_config, key), key
    assert ours.parallel.enable_parallel_optimizer == theirs.parallel.enable_parallel_optimizer
    sizes = ("num_layers", "hidden_size", "num_heads", "ffn_size", "seq_length", "vocab_size")
    words = ("position_embedding", "use_flash_attention", "eos_token_id", "pad_token_id")
    drawn = ("do_sample", "top_k", "top_p", "temperature", "repetition_penalty")
    for key in (*sizes, *words, *drawn):
        assert getattr(ours.model.config, key) == getattr(theirs.model.config, key), key
    if theirs.model.config.max_decode_length is not None:
        assert ours.model.config.max_decode_length == theirs.model.config.max_decode_length
    lora, adapter = theirs.model.config.pet_config, ours.model.config.pet_config
    assert (lora is None) == (adapter is None)
    if lora is not None:
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "target_modules"):
            assert getattr(lora, key) == getattr(adapter, key)
    assert [item.type for item in ours.metric] == [item.type for item in theirs.metric]
    for key in ("data_parallel", "model_parallel", "pipeline_stage"):
        assert getattr(ours.parallel_config, key) == getattr(theirs.parallel_config, key), key


def plan(capsys, *words: str) -> str:
    assert run_verb("plan", SPEC, list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "changes", "ranks"),
    [
        ("baichuan2_7b", "", "8 ranks, rank = (stage x 8 + dp) x 1 + tp"),
        ("baichuan2_7b", "2 4 2 8", "16 ranks, rank = (stage x 2 + dp) x 4 + tp"),
        ("baichuan2_7b_lora", "", "8 ranks, rank = (stage x 8 + dp) x 1 + tp"),
        ("baichuan2_13b", "", "8 ranks, rank = (stage x 1 + dp) x 2 + tp"),
        ("baichuan2_13b", "1 8 2 16", "16 ranks, rank = (stage x 1 + dp) x 8 + tp"),
        ("baichuan2_13b", "1 2 1 1", "2 ranks, rank = (stage x 1 + dp) x 2 + tp"),
        ("baichuan2_13b_4096", "8 1 2 8", "16 ranks, rank = (stage x 8 + dp) x 1 + tp"),
        ("baichuan2_13b_lora", "", "8 ranks, rank = (stage x 8 + dp) x 1 + tp"),
    ],
)
def test_the_layouts_of_the_card(name: str, changes: str, ranks: str, capsys):
    keys = ("data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num")
    words = [
        f"parallel_config.{key}={n}" for key, n in zip(keys, changes.split(), strict=False) if n
    ]
    shown = plan(capsys, "--config", name, "use_parallel=True", *words)
    assert ranks in shown
    count = "13,89" if "13b" in name else "7,50"
    assert re.search(rf"^{name.removesuffix('_4096')}: {count}", shown, re.MULTILINE)


@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b", "baichuan2_13b_910b"])
def test_the_cards_own_files_can_be_planned(name: str, tmp_path: Path, capsys):
    shown = plan(capsys, "--config", str(written(tmp_path, CARD.run(name))))
    assert f"{'8' if name.endswith('910b') else '16'} ranks" in shown


SIZES = {
    "type": "LlamaConfig", "hidden_size": 96, "num_layers": 2, "num_heads": 6, "vocab_size": 500,
}  # fmt: skip


def made(arch: str, **sizes: Any) -> dict[str, Any]:
    return {"model": {"model_config": {**SIZES, **sizes}, "arch": {"type": arch}}}


@pytest.mark.parametrize(
    ("arch", "positions"),
    [
        ("Baichuan7BV2ForCausalLM", "rope"),
        ("Baichuan13BV2ForCausalLM", "alibi"),
        ("BaichuanForCausalLM", "rope"),
    ],
)
def test_the_networks_name_decides_about_positions(arch: str, positions: str):
    """Sizes alone do not tell the two apart; the files for adapters on 13B name no preset."""
    run = read_run(made(arch))
    assert run.model.config.position_embedding == positions
    other = {"rope": "alibi", "alibi": "rope"}[positions]
    said = read_run(made(arch, position_embedding=other))
    assert said.model.config.position_embedding == other


@pytest.mark.parametrize("name", ["preset", "model_name"])
def test_a_network_that_is_not_the_presets(name: str):
    values = made("Baichuan7BV2ForCausalLM")
    if name == "preset":
        values["model"]["model_config"]["preset"] = "baichuan2_13b"
    else:
        values["trainer"] = {"model_name": "baichuan2_13b"}
    says = (
        "model.arch.type: is a network with position_embedding rope, and baichuan2_13b has alibi; "
        "must agree; change one of the two, or set model.model_config.position_embedding"
    )
    with pytest.raises(ConfigError) as caught:
        read_run(values)
    assert len(caught.value.problems) == 1 and says in str(caught.value)
    values["model"]["model_config"]["position_embedding"] = "alibi"
    assert read_run(values).model.config.position_embedding == "alibi"


def test_where_positions_come_from_is_said():
    run = read_run(made("Baichuan13BV2ForCausalLM"))
    assert run.origin("model.model_config.position_embedding") == run.origin("model.arch.type")


@pytest.mark.parametrize("arch", ["LlamaForCausalLM", "Baichuan13BV3ForCausalLM"])
def test_a_network_of_others_is_refused(arch: str):
    with pytest.raises(ConfigError, match=r"model\.arch\.type: "):
        load_run(made(arch), family=SPEC)


def test_tokens_of_roles_are_those_of_the_vocabulary():
    run = read_run(made("Baichuan7BV2ForCausalLM", user_token_id=195, assistant_token_id=7))
    assert no_effect(run) == ["model.model_config.assistant_token_id"]


LORA = """\
base: baichuan2_7b
load_checkpoint: 'model_dir'    # 使用完整权重或分别加载预训练、lora权重
auto_trans_ckpt: True           # 打开自动权重转换
run_mode: 'finetune'
# dataset
train_dataset: &train_dataset
  data_loader:
    type: MindDataset
    dataset_dir: "dataset_dir"  # 配置训练数据集文件夹路径
    shuffle: True
  input_columns: ["input_ids", "labels"]
# 8卡分布式策略配置
parallel_config:
  data_parallel: 8
  model_parallel: 1
  pipeline_stage: 1
  micro_batch_num: 1
  vocab_emb_dp: True
  gradient_aggregation_group: 4
# 权重保存配置参考
parallel:
  strategy_ckpt_config:
    save_file: "./ckpt_strategy.ckpt"
    only_trainable_params: False # 配置为False，保存完整权重
# callbacks
callbacks:
  - type: CheckpointMointor
    save_checkpoint_steps: 500
    save_trainable_params: True  #若需要单独保存lora参数的训练权重，可将此参数置为True
# model增加pet_config
model:
  model_config:
    pet_config:
      pet_type: lora
      # configuration of lora
      lora_rank: 1
      lora_alpha: 32
      lora_dropout: 0.1
      target_modules: '.*wq|.*wk|.*wv'
max_device_memory: "31GB"    # Atlas 800将最大内存改为31GB即可
"""


def test_the_fragments_of_adapters(tmp_path: Path):
    """What the card has a user write into its run file, in the order of its steps."""
    path = tmp_path / "r.yaml"
    path.write_text(LORA, encoding="utf-8")
    run = read_run(path)
    assert run.model.config.pet_config == read_run("baichuan2_7b_lora").model.config.pet_config
    assert run.train_dataset.input_columns == ["input_ids", "labels"]
    assert (run.auto_trans_ckpt, run.load_checkpoint) == (True, "model_dir")
    assert run.parallel_config.data_parallel == 8


INFERENCE = """\
load_checkpoint: 'path/to/Baichuan2-13B-Chat.ckpt'   # 填写权重绝对路径
src_strategy_path_or_dir: ''                         # 使用完整权重，不需要填写策略文件路径
auto_trans_ckpt: True                                # 打开自动权重转换
use_past: True                                       # 使用增量推理
vocab_file: 'path/to/tokenizer.model'                # 配置词表路径
"""
PLACES = places("use_past: True\nmax_decode_length: 512\n", "baichuan2_13b")


def test_the_fragment_of_inference(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(f"base: baichuan2_13b\n{INFERENCE}", encoding="utf-8")
    run = read_run(path)
    assert run.processor.tokenizer.vocab_file == "path/to/tokenizer.model"
    assert run.model.config.use_past and run.auto_trans_ckpt
    assert run.model.config.position_embedding == "alibi"


@pytest.mark.parametrize("where", PLACES)
def test_sizes_pasted_anywhere(where: str, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(PLACES[where], encoding="utf-8")
    assert read_run(path).model.config.max_decode_length == 512
