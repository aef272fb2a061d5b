"""Every value of every run file of the GPT2 model card is accepted and kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_core.config.load import dump_run, load_run
from lm_core.spec import read_run
from lm_gpt2 import SPEC
from lm_gpt2.config import Gpt2Config

CARD = Path(__file__).parent / "card" / "run_gpt2.yaml"

GRAPH = {
    "context.enable_graph_kernel": False,
    "context.graph_kernel_flags": "--disable_expand_ops=Softmax,Dropout "
    "--enable_parallel_fusion=true --reduce_fuse_depth=8 --enable_auto_tensor_inplace=true",
    "context.max_call_depth": 10000,
    "context.save_graphs": False,
    "context.save_graphs_path": "./graph",
}
LORA = {
    "model.model_config.pet_config": {
        "pet_type": "lora",
        "lora_rank": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.1,
        "target_modules": ".*dense1.*|.*dense3.*",
    }
}
XL = {
    **GRAPH,
    "context.max_device_memory": "30GB",
    "runner_config.epochs": 2,
    "runner_config.batch_size": 8,
    "use_parallel": True,
    "parallel.parallel_mode": 1,
    "parallel.gradients_mean": False,
    "parallel.enable_parallel_optimizer": True,
    "parallel.full_batch": True,
    "parallel.loss_repeated_mean": True,
    "parallel.strategy_ckpt_save_file": "./ckpt_strategy.ckpt",
    "parallel_config.data_parallel": 8,
    "recompute_config.recompute": True,
    "recompute_config.recompute_slice_activation": False,
    "auto_tune": True,
    "init_start_profile": True,
    "profile_communication": True,
    "trainer.model_name": "gpt2_xl",
    "model.model_config.hidden_size": 1600,
    "model.model_config.num_layers": 48,
    "model.model_config.num_heads": 25,
    "model.model_config.hidden_act": "fast_gelu",
    "model.model_config.param_init_type": "float16",
    "model.model_config.softmax_compute_type": "float16",
    "model.model_config.checkpoint_name_or_path": "gpt2_xl",
    "lr_schedule.learning_rate": 5e-5,
    "lr_schedule.lr_end": 1e-6,
    "lr_schedule.warmup_steps": 2000,
    "callbacks.1.prefix": "gpt2-xl",
    "callbacks.1.save_checkpoint_steps": 500,
    "callbacks.1.integrated_save": False,
}
BIG = {
    **XL,
    "runner_config.batch_size": 2,
    "trainer.model_name": "gpt2_13b",
    "train_dataset.tokenizer.max_length": 2049,
    "eval_dataset.tokenizer.max_length": 2048,
    "model.model_config.seq_length": 2048,
    "model.model_config.max_decode_length": 2048,
    "model.model_config.hidden_size": 5120,
    "model.model_config.num_layers": 40,
    "model.model_config.num_heads": 40,
    "model.model_config.checkpoint_name_or_path": "",
    "parallel_config.data_parallel": 4,
    "parallel_config.model_parallel": 8,
    "callbacks.1.prefix": "gpt2-13b",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2_lora": {
        **LORA,
        "run_mode": "finetune",
        "load_checkpoint": "gpt2",
        "runner_config.batch_size": 8,
        "parallel.gradients_mean": False,
        "parallel.full_batch": True,
        "parallel.strategy_ckpt_save_file": "./ckpt_strategy.ckpt",
        "lr_schedule.learning_rate": 1e-3,
        "lr_schedule.lr_end": 1e-4,
        "model.model_config.checkpoint_name_or_path": "gpt2_lora",
    },
    "gpt2_txtcls": {
        **GRAPH,
        "run_mode": "finetune",
        "runner_config.epochs": 1,
        "runner_config.batch_size": 16,
        "runner_config.sink_mode": False,
        "trainer.type": "TextClassificationTrainer",
        "trainer.model_name": "gpt2_txtcls",
        "train_dataset.input_columns": ["input_ids", "attention_mask", "labels"],
        "train_dataset.tokenizer.max_length": 1024,
        "train_dataset_task.type": "TextClassificationDataset",
        "eval_dataset.input_columns": ["input_ids", "attention_mask", "labels"],
        "eval_dataset_task.type": "TextClassificationDataset",
        "model.arch.type": "GPT2ForSequenceClassification",
        "model.model_config.num_labels": 2,
        "metric.type": "Accuracy",
        "metric.eval_type": "classification",
        "callbacks.1.prefix": "gpt2_txtcls",
        "callbacks.1.save_checkpoint_steps": 100,
    },
    "gpt2_xl": XL,
    "gpt2_xl_lora": {
        **XL,
        **LORA,
        "run_mode": "finetune",
        "load_checkpoint": "gpt2_xl",
        "lr_schedule.learning_rate": 5e-4,
        "lr_schedule.lr_end": 1e-5,
        "model.model_config.checkpoint_name_or_path": "gpt2_xl_lora",
    },
    "gpt2_13b": BIG,
    "gpt2_13b_910b": {
        **BIG,
        "context.max_device_memory": "59GB",
        "parallel_config.data_parallel": 8,
        "parallel_config.model_parallel": 1,
        "parallel_config.optimizer_shard": True,
        "recompute_config.recompute_slice_activation": True,
        "lr_schedule.warmup_steps": 0,
    },
    "gpt2_52b": {
        **BIG,
        "trainer.model_name": "gpt2_52b",
        "train_dataset.tokenizer.max_length": 1025,
        "eval_dataset.tokenizer.max_length": 1024,
        "model.model_config.seq_length": 1024,
        "model.model_config.max_decode_length": 1024,
        "model.model_config.hidden_size": 8192,
        "model.model_config.num_layers": 64,
        "model.model_config.num_heads": 32,
        "parallel_config.data_parallel": 8,
        "parallel_config.model_parallel": 1,
        "parallel_config.pipeline_stage": 16,
        "parallel_config.micro_batch_num": 64,
        "callbacks.1.prefix": "gpt2-52b",
        "callbacks.1.save_checkpoint_steps": 100,
    },
}
"""What the card's other files change in it."""

RENAMED = {
    "GPT2Config": "GPT2Config",
    "MFTrainOneStepCell": "train_one_step",
    "DynamicLossScaleUpdateCell": "dynamic",
    "CausalLanguageModelingTrainer": "text_generation",
    "TextClassificationTrainer": "text_classification",
    "CausalLanguageModelDataset": "causal_lm",
    "TextClassificationDataset": "text_classification",
    "FusedAdamWeightDecay": "adamw",
    "MFLossMonitor": "loss_monitor",
    "CheckpointMointor": "checkpoint",
    "ObsMonitor": "obs",
    "PerplexityMetric": "perplexity",
    "Accuracy": "accuracy",
    "gelu": "gelu_tanh",
}
"""The only values that a loaded run spells differently."""


def card_run(name: str) -> dict[str, Any]:
    values = yaml.safe_load(CARD.read_text(encoding="utf-8"))
    for key, value in VARIANTS[name].items():
        *sections, last = key.split(".")
        place: Any = values
        for section in sections:
            place = place[int(section)] if section.isdigit() else place[section]
        place[last] = copy.deepcopy(value)
    return values


def flat(values: Any, path: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        pairs = enumerate(values)
    else:
        return {path: values}
    return {
        k: v for key, value in pairs for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_run_files_load_value_for_value(name: str, tmp_path: Path):
    path = tmp_path / f"run_{name}.yaml"
    path.write_text(yaml.safe_dump(card_run(name)))
    run = load_run(path, family=SPEC)
    shown = flat(yaml.safe_load(dump_run(run)))
    shown |= {key.replace("metric.0", "metric"): value for key, value in shown.items()}
    for key, value in flat(card_run(name)).items():
        if ".dataset_config." not in key:
            wanted = RENAMED.get(value, value) if isinstance(value, str) else value
            assert shown[key] == wanted, key
    assert run.loss_scale.loss_scale_value == 2.0**32
    assert read_run(path).model.config == run.model.config


def test_the_file_as_it_is_written():
    """With its anchors: what is changed in a data set is changed for its task."""
    override = "train_dataset.data_loader.dataset_dir=there"
    run = load_run(CARD, [override], family=SPEC)
    assert run.train_dataset.data_loader.dataset_dir == "there"
    assert run.model.config == Gpt2Config(
        use_past=False,
        compute_dtype="float16",
        checkpoint_name_or_path="gpt2",
        max_decode_length=1024,
        top_k=5,
        do_sample=True,
    )
    lines = CARD.read_text(encoding="utf-8").splitlines()
    assert run.origin("optimizer.eps").endswith(f":{lines.index('  eps: 1.e-8') + 1}")


OPTIMIZERS = ("FusedAdamWeightDecay", "FP32StateAdamWeightDecay", "AdamW")
SCHEDULES = {
    "polynomial": "polynomial",
    "PolynomialWithWarmUpLR": "polynomial",
    "CosineWithWarmUpLR": "cosine",
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimizers_and_schedules_of_the_cards(optimizer: str, schedule: str):
    words = [f"optimizer.type={optimizer}", f"lr_schedule.type={schedule}"]
    run = load_run(CARD, words, family=SPEC)
    assert (run.optimizer.type, run.lr_schedule.type) == ("adamw", SCHEDULES[schedule])


FRAGMENT = """\
# model config
use_past: True          # 开启增量推理
use_moe: False
expert_num: 1
per_token_num_experts_chosen: 1
checkpoint_name_or_path: "gpt2"
repetition_penalty: 1
max_decode_length: 1024
top_k: 3
top_p: 1
do_sample: True
"""
"""The card's note on faster inference."""


@pytest.mark.parametrize("where", ["alone", "pasted behind", "in its section"])
def test_the_fragment_of_the_card(where: str, tmp_path: Path):
    indented = "".join(f"    {line}\n" for line in FRAGMENT.splitlines())
    text = {
        "alone": FRAGMENT,
        "pasted behind": f"base: gpt2\n{FRAGMENT}",
        "in its section": f"model:\n  model_config:\n    preset: gpt2\n{indented}",
    }[where]
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    config = read_run(path).model.config
    assert (config.use_past, config.top_k, config.do_sample) == (True, 3, True)
    assert (config.max_decode_length, config.hidden_size, config.num_layers) == (1024, 768, 12)
