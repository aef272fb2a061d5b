"""Every value of every run file of the cards of Code Llama and Llama 2 is accepted and kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cards import Card, kept, places, shown, written

from lm_core.cli import run_verb
from lm_core.config.load import load_run
from lm_core.spec import read_run
from lm_llama import SPEC
from lm_llama.config import PRESETS

HERE = Path(__file__).parent
CARDS = {name: Card.read(HERE / "card" / f"{name}.yaml") for name in ("codellama", "llama2")}
FILES = [(card, name) for card, values in CARDS.items() for name in values.files]


@pytest.mark.parametrize(("card", "name"), FILES)
def test_run_files_load_value_for_value(card: str, name: str, tmp_path: Path):
    kept(CARDS[card].run(name), SPEC, tmp_path)


@pytest.mark.parametrize(
    ("card", "name", "preset"),
    [
        ("codellama", "codellama_34b_910b", "codellama_34b"),
        ("codellama", "predict_codellama_34b_910b", "codellama_34b"),
        ("llama2", "llama2_7b_910b", "llama2_7b"),
        ("llama2", "llama2_7b_lora_910b", "llama2_7b"),
        ("llama2", "llama2_13b_910b", "llama2_13b"),
    ],
)
def test_the_sizes_of_the_files_are_those_of_the_presets(card, name, preset, tmp_path: Path):
    config = load_run(written(tmp_path, CARDS[card].run(name)), family=SPEC).model.config
    assert config.parameter_count() == PRESETS[preset].parameter_count()
    assert (config.rms_norm_eps, config.theta) == (
        PRESETS[preset].rms_norm_eps,
        PRESETS[preset].theta,
    )
    assert config.kv_heads == PRESETS[preset].kv_heads


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("model.model_config.pretrain_seqlen", 4096),
        ("model.model_config.qkv_concat", True),
        ("model.model_config.fine_grain_interleave", 2),
        ("model.model_config.use_past_shard", True),
        ("model.model_config.compute_in_2d", True),
        ("processor.tokenizer.type", "LLaMATokenizer"),
        ("processor.tokenizer.type", "LlamaTokenizerFast"),
        ("model.arch.type", "LlamaForCausalLM"),
    ],
)
def test_other_words_of_the_cards(word: str, value: Any, tmp_path: Path):
    path = written(tmp_path, CARDS["codellama"].run("codellama_34b_910b"))
    run = load_run(path, [f"{word}={value}"], family=SPEC)
    assert shown(run)[word] == value


FINETUNE = """\
base: codellama_34b
train_dataset: &train_dataset
  data_loader:
    type: MindDataset
    dataset_dir: "/{path}/code-alpaca-fastchat4096.mindrecord"
    shuffle: True
  input_columns: ["input_ids", "labels"]
# optimizer
optimizer:
  type: FP32StateAdamWeightDecay
  beta1: 0.9
  beta2: 0.999
  eps: 1.e-8
  learning_rate: 5.e-6

# lr sechdule
lr_schedule:
  type: CosineWithWarmUpLR
  learning_rate: 5.e-6
  lr_end: 0
  warmup_ratio: 0.03
  total_steps: -1 # -1 means it will load the total steps of the dataset

# context
context:
  runtime_num_threads: 1
auto_trans_ckpt: True
load_checkpoint: path/to/checkpoint_dir
"""


def test_the_fragments_of_fine_tuning(tmp_path: Path):
    """What the card has a user write into its run file, in the order of its steps."""
    path = tmp_path / "r.yaml"
    path.write_text(FINETUNE)
    run = read_run(path)
    assert run.optimizer.type == "adamw"
    assert (run.optimizer.beta1, run.optimizer.beta2, run.optimizer.eps) == (0.9, 0.999, 1e-8)
    assert run.learning_rate == 5e-6
    assert (run.lr_schedule.type, run.lr_schedule.lr_end) == ("cosine", 0)
    assert (run.lr_schedule.warmup_ratio, run.lr_schedule.total_steps) == (0.03, -1)
    assert run.train_dataset.input_columns == ["input_ids", "labels"]
    assert (run.auto_trans_ckpt, run.load_checkpoint) == (True, "path/to/checkpoint_dir")
    assert run.degrees.world_size == 32
    assert run.degrees.micro_batch_num == 96


INFERENCE = """\
# model config
use_past: True          # 开启增量推理
pretrain_seqlen: 4096
extend_method: "None"
offset: 0
checkpoint_name_or_path: ""
repetition_penalty: 1
max_decode_length: 512
top_k: 3
top_p: 1
do_sample: False
max_new_tokens: 512      #设置最大生成长度
"""


PLACES = places(INFERENCE, "predict_codellama_34b")


@pytest.mark.parametrize("where", PLACES)
def test_the_fragment_of_inference(where: str, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(PLACES[where], encoding="utf-8")
    config = read_run(path).model.config
    assert (config.max_new_tokens, config.max_decode_length, config.top_k) == (512, 512, 3)
    assert (config.use_past, config.extend_method, config.pretrain_seqlen) == (True, "None", 4096)
    assert (config.hidden_size, config.num_layers) == (8192, 48)


def test_the_layout_of_the_card(capsys):
    """34B on four machines of eight cards: layers, ranks, memory of each, and an update."""
    assert run_verb("plan", SPEC, ["--config", "codellama_34b"]) == 0
    shown = capsys.readouterr().out
    assert "codellama_34b: 33,743,970,304 parameters" in shown
    assert "32 ranks, rank = (stage x 4 + dp) x 4 + tp" in shown
    assert re.search(r"^ +0 +0-15 +0-23 +0-3 +0-3 +4,414,898,176", shown, re.MULTILINE)
    assert re.search(r"^ +1 +16-31 +24-47 .* norm, head$", shown, re.MULTILINE)
    assert "an update: 384 records, 1,572,864 tokens" in shown


def test_the_table_of_the_readme():
    """Each preset has a row, and the row says what the preset is."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, rest in rows:
        config = PRESETS[name]
        count, *numbers = (cell.strip() for cell in rest.split("|"))
        size = float(count[:-1]) * {"B": 1e9, "K": 1e3}[count[-1]]
        assert size == pytest.approx(config.parameter_count(), rel=5e-3)
        heads = str(config.num_heads)
        if config.kv_heads != config.num_heads:
            heads += f" ({config.kv_heads})"
        sizes = (config.num_layers, config.hidden_size, heads, config.vocab_size, config.seq_length)
        assert numbers[:5] == [str(size) for size in sizes], name
        assert [float(number) for number in numbers[5:7]] == [config.rms_norm_eps, config.theta]
