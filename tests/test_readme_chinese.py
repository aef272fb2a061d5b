"""The model cards of the Chinese models, in order, as a reader would type them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import official
import pytest
import yaml
from readmes import ROOT, run_all

from lm_core.testing import tiny

SMALLER_GLM2 = [
    (r"(--config |base: )(glm2_6b(_lora)?)(?=\s)", r"\1tiny_\2.yaml"),
    (r'model="(glm2_6b)",\n', r'args="tiny_\1.yaml",\n'),  # the run of a Trainer
    (r'(AutoConfig.from_pretrained\(")glm2_6b', r"\1chatglm2-6b"),
    (r"--max_steps (1500|300)", "--max_steps 3"),
    (r"--num_samples 100", "--num_samples 3"),
    (r"vocab_size=2043", "vocab_size=320"),
    (r"max_length=128", "max_length=192"),  # this vocabulary knows no Chinese
    (r"(max_new_tokens[ =])(16|20|60|64)", r"\g<1>4"),
]


def write_glm2(folder: Path) -> None:
    """A tiny model as it is published, garments, and the card's runs in its sizes."""
    from lm_glm2 import SPEC
    from lm_glm2.tokenizer import ChatGlm2Tokenizer

    tokenizer = ChatGlm2Tokenizer(tiny.sentencepiece_model())
    sizes = {
        "hidden_size": 32, "num_heads": 4, "kv_channels": 8, "intermediate_size": 48,
        "vocab_size": tokenizer.vocab_size + 3, "num_layers": 1, "seq_length": 193,
    }  # fmt: skip
    tiny.write_hf(tiny.model(SPEC, **sizes), SPEC, folder / "chatglm2-6b")
    tokenizer.save_pretrained(folder / "chatglm2-6b")
    for name, preset in (("glm2_6b", sizes), ("glm2_6b_lora", sizes)):
        config = {"preset": "glm2_tiny", **preset, "max_decode_length": 193}
        run = {"base": name, "model": {"model_config": config}}
        run["runner_config"] = {"max_steps": 2, "batch_size": 2}
        (folder / f"tiny_{name}.yaml").write_text(yaml.safe_dump(run))


@pytest.mark.slow
def test_the_model_card_of_glm2(folder):
    write_glm2(folder)
    (folder / "AdvertiseGen").mkdir()
    for name, count in (("train", 40), ("dev", 4)):
        garments = product("裙裤", ("黑色", "白色"), range(1, count // 4 + 1))
        rows = (
            {"content": f"类型#{kind}*颜色#{color}", "summary": f"{color}的{kind}很好看。" * times}
            for kind, color, times in garments
        )
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "AdvertiseGen" / f"{name}.json").write_text("".join(lines), encoding="utf-8")
    run_all(ROOT / "packages/glm2/README.md", folder, SMALLER_GLM2)


SMALLER_BAICHUAN2 = [
    (r"(--config |base: )(baichuan2_(?:7b|13b)(?:_lora|_4096)?)(?=\s)", r"\1tiny_\2.yaml"),
    (r'("--config", default=")(baichuan2_7b)', r"\1tiny_\2.yaml"),
    (r"--max_steps 200", "--max_steps 3"),
    (r"--seq_length (512|4096)", "--seq_length 128"),
    (r"(max_new_tokens[ =])(16|64)", r"\g<1>4"),
    (r"parallel_config\.model_parallel=4", "parallel_config.model_parallel=2"),
    (r"(?m)^  data_parallel: 2\n  model_parallel: 4", "  data_parallel: 4\n  model_parallel: 2"),
]


def write_baichuan2(folder: Path) -> None:
    """Tiny models of both kinds as they are published, and the card's runs in their sizes."""
    from lm_baichuan2 import SPEC
    from lm_baichuan2.tokenizer import ASSISTANT, USER, Baichuan2Tokenizer

    symbols = {"user_defined_symbols": [USER, ASSISTANT], "add_dummy_prefix": False}
    tokenizer = Baichuan2Tokenizer(tiny.sentencepiece_model(**symbols))
    sizes = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "num_layers": 2}
    sizes |= {"vocab_size": tokenizer.vocab_size, "seq_length": 128}
    for size, positions in (("7b", "rope"), ("13b", "alibi")):
        model = tiny.model(SPEC, **sizes, position_embedding=positions)
        for name in ("Base", "Chat"):
            place = folder / f"Baichuan2-{size.upper()}-{name}"
            tiny.write_hf(model, SPEC, place)
            tokenizer.save_pretrained(place)
        for name in ("", "_lora", "_4096"):
            config = {**sizes, "max_decode_length": 64, "position_embedding": positions}
            run = {"base": f"baichuan2_{size}{name}"}
            run["model"] = {"model_config": {"preset": f"baichuan2_{size}", **config}}
            run["runner_config"] = {"max_steps": 2, "batch_size": 2}
            (folder / f"tiny_baichuan2_{size}{name}.yaml").write_text(yaml.safe_dump(run))


@pytest.mark.slow
def test_the_model_card_of_baichuan2(folder):
    write_baichuan2(folder)
    (folder / "wiki.train.tokens").write_text(tiny.text(200))
    talks = [
        {"conversations": [{"from": role, "value": text} for role, text in turns]}
        for turns in ([("human", "Hello!"), ("gpt", f"Good morning, {n}.")] * 2 for n in range(9))
    ]
    (folder / "belle_chat_ramdon_10k.json").write_text(json.dumps(talks))
    run_all(ROOT / "packages/baichuan2/README.md", folder, SMALLER_BAICHUAN2)


SMALLER_PANGUALPHA = [
    (
        r"(--config |base: )(pangualpha_(?:2_6b|13b)(?:_prompt_txtcls|_em_f1)?)(?=\s)",
        r"\1tiny_\2.yaml",
    ),
    (r'model="(pangualpha_2_6b)",\n', r'args="tiny_\1.yaml",\n'),  # the run of a Trainer
    (r'(AutoConfig.from_pretrained\(")pangualpha_2_6b', r"\1pangu_2_6B"),
    (r"--config_path_or_name pangualpha_13b", "--config_path_or_name run.yaml"),
    (r"vocab_size=4000", "vocab_size=44"),
    (r"--num_samples 1000", "--num_samples 5"),
    (r"--seq_length 1025", "--seq_length 257"),
    (r"--max_length 1024", "--max_length 200"),
    (r"max_length=(100|50|64)", "max_length=140"),  # this vocabulary knows no Chinese
    (r"(max_new_tokens[ =])(16|24|50)", r"\g<1>4"),
    (r"parallel_config\.model_parallel=8", "parallel_config.model_parallel=4"),
]


def write_pangualpha(folder: Path) -> None:
    """Tiny models as they are published, and the card's runs in their sizes."""
    from lm_pangualpha import SPEC
    from lm_pangualpha.tokenizer import PanguAlphaTokenizer

    symbols = ["\u2583", "\u2582", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    tokenizer = PanguAlphaTokenizer(tiny.sentencepiece_model(user_defined_symbols=symbols))
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "seq_length": 256}
    sizes |= {"vocab_size": tokenizer.vocab_size, "ffn_hidden_size": 64}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    tiny.write_hf(tiny.model(SPEC, **sizes, **tokens), SPEC, folder / "pangu_2_6B")
    tokenizer.save_pretrained(folder / "pangu_2_6B")
    for name in SPEC.run_names():
        config = {"preset": "pangualpha_2_6b", **sizes, **tokens, "max_decode_length": 256}
        run = {"base": name, "model": {"model_config": config}}
        run["runner_config"] = {"max_steps": 2, "batch_size": 2}
        ends = {"eod_token_id": tokens["eos_token_id"]}
        run |= {"train_dataset": ends, "eval_dataset": dict(ends)}
        (folder / f"tiny_{name}.yaml").write_text(yaml.safe_dump(run))
    official.write_release(folder / "release", official.whole_tensors())
    for ours, theirs in (
        ("parts", "512ckpt"), ("npy", "embedding_dir"), ("run.yaml", "run.yaml"),
        ("pangu_alpha_ckpt_strategy.ckpt", "pangu_alpha_13B_ckpt_strategy.ckpt"),
    ):  # fmt: skip
        (folder / "release" / ours).rename(folder / theirs)


def write_data_of_pangualpha(folder: Path) -> None:
    """Headlines, texts, and questions about texts."""
    for name in ("data", "tnews", "cmrc2018"):
        (folder / name).mkdir()
    (folder / "data" / "a.txt").write_text("\n\n".join(tiny.text(60).splitlines()))
    subjects = ("story", "culture", "sports", "house", "car")
    lines = [
        {
            "label": str(100 + at),
            "label_desc": f"news_{subject}",
            "sentence": f"今天的新闻{n}很好看",
        }
        for at, subject in enumerate(subjects)
        for n in range(24)
    ]
    for name, rows in (("train", lines), ("dev", lines[::4]), ("labels", lines[::24])):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "tnews" / f"{name}.json").write_text(text, encoding="utf-8")
    for name in ("train", "dev"):
        asked = [
            {"id": "Q", "question": "谁来了？", "answers": [{"text": "小王", "answer_start": 0}]}
        ]
        article = {"title": "t", "id": "A", "paragraphs": [{"context": "小王来了。", "qas": asked}]}
        text = json.dumps({"version": "v1.0", "data": [article]}, ensure_ascii=False)
        (folder / "cmrc2018" / f"{name}.json").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_model_card_of_pangualpha(folder):
    write_pangualpha(folder)
    write_data_of_pangualpha(folder)
    run_all(ROOT / "packages/pangualpha/README.md", folder, SMALLER_PANGUALPHA)
