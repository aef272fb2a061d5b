"""Every command and snippet of every README runs, in order, as a reader would type it.

Names stand for big things: here `gpt2` and `codellama_7b` are folders with tiny checkpoints in the
published layout, and runs of the 124M and the 7B model are runs of that size.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from documents import TESTED, Runner, blocks

from lm_core.errors import SandboxError
from lm_core.launch.job import free_port
from lm_core.sandbox import runner
from lm_core.testing import tiny

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
]
EVERYWHERE = [
    (r"--max_steps (200|50)", "--max_steps 2"),
    (r"--max_steps 1000", "--max_steps 4"),
    (r"(?<= )((?:packages|tools)/\S+\.(?:sh|py))", rf"{ROOT}/\1"),
    (r"--master_port=8119", f"--master_port={free_port()}"),
    (r"ssh \S+ (\"[^\"]*\") &", r"bash -c \1"),  # every machine is this one
]
SMALLER = [
    (r"--config gpt2(?= )", "--config tiny.yaml"),
    (r"--max_length 1025", "--max_length 33"),
    (r"--max_length 129", "--max_length 33"),
    (r"--config gpt2_txtcls(?= )", "--config tiny_txtcls.yaml"),
    (r"--config gpt2_lora(?= )", "--config tiny_lora.yaml"),
    (r"--max_length 64", "--max_length 32"),
    (r"\[50256\]", "[399]"),
]
SMALLER_LLAMA = [
    (r"--config (codellama_7b|llama2_7b_lora)(?=\s)", r"--config tiny_\1.yaml"),
    (r'("--yaml_file", default=")(codellama_7b)', r"\1tiny_\2.yaml"),
    (r"--yaml_file (predict_codellama_34b)", r"--yaml_file tiny_\1.yaml"),
    (r"worker_num=8", "worker_num=2"),
    (r"parallel_config\.(data|model)_parallel=4", r"parallel_config.\1_parallel=2"),
    (r"--seq_length 4096", "--seq_length 512"),
    (r"(max_new_tokens[ =])(64|128|512)", r"\g<1>8"),
    (r"--num_samples 20", "--num_samples 10"),
    (r"\[a-z\]\*", "[ab]*"),
    (r"(python -m lm_llama\.serve .*) --port 8000", r"\1 --port 8000 2> serve.log & echo $! > pid; "
     r"until grep -q 'serving llama' serve.log; do kill -0 $(cat pid); sleep 0.2; done"),
    (r"(port |127\.0\.0\.1:)8000", rf"\g<1>{free_port()}"),
]  # fmt: skip


def test_all_readmes_are_found():
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "core/README.md"} <= names
    assert {f"packages/{path.name}/README.md" for path in (ROOT / "packages").iterdir()} <= names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_all(
    document: Path,
    folder: Path,
    smaller: list[tuple[str, str]] = SMALLER,
    leave_out: str | None = None,
) -> None:
    """Runs the blocks, but those that hold `leave_out`."""
    reader = Runner(folder, [*smaller, *EVERYWHERE])
    ran = [
        block
        for block in blocks(document)
        if block.language in TESTED
        and not block.skip
        and (leave_out is None or leave_out not in block.text)
    ]
    assert ran or document.name == "CONTRIBUTING.md"
    for block in ran:
        reader.run(block)


STILL = dict.fromkeys(
    ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate"), 0.0
)
"""What masks compute other tests look at; without them a training step compiles sooner."""


def write_checkpoint(folder: Path) -> None:
    """A tiny model and its vocabulary, as they are published."""
    from lm_core.tokenizer.bpe_train import train_bpe
    from lm_gpt2 import SPEC
    from lm_gpt2.tokenizer import Gpt2Tokenizer

    prompts = "An increasing sequence: one, two. I love Beijing, because. The city. Hello there. "
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(300), 20 * prompts], 400))
    end = tokenizer.eos_token_id
    model = tiny.model(
        SPEC, vocab_size=tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
        seq_length=32, bos_token_id=end, eos_token_id=end, pad_token_id=end, **STILL,
    )  # fmt: skip
    tiny.write_hf(model, SPEC, folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    sizes = json.loads((folder / "gpt2" / "config.json").read_text())
    config = {
        "preset": "gpt2_tiny", "vocab_size": sizes["vocab_size"], "hidden_size": 16,
        "num_layers": 1, "num_heads": 2, "seq_length": 32, "max_decode_length": 32,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, **STILL,
    }  # fmt: skip
    run = {
        "base": "gpt2_tiny", "model": {"model_config": config}, "runner_config": {"max_steps": 2}
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(run))
    run["base"] = "gpt2_lora"
    (folder / "tiny_lora.yaml").write_text(yaml.safe_dump(run))
    run["base"] = "gpt2_txtcls"
    (folder / "tiny_txtcls.yaml").write_text(yaml.safe_dump(run))


@pytest.mark.slow
def test_the_front_page(folder, monkeypatch):
    """The demo first, since what follows uses what it leaves."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import demo

    settings = {
        "steps": 4, "megabytes": 0.15, "vocab_size": 300, "hidden_size": 16, "num_layers": 1,
        "num_heads": 2, "seq_length": 32, "batch_size": 4,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert demo.main(words) == 0
    left = {path.name for path in (folder / "demo_output").iterdir()}
    assert {"loss_curve.csv", "loss_curve.png", "before.json", "after.json"} <= left
    run_all(ROOT / "README.md", folder)
    for name in ("demo", "demo_corpus"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_model_card_of_gpt2(folder):
    write_checkpoint(folder)
    for name in ("train", "valid"):
        (folder / f"wiki.{name}.tokens").write_text(tiny.text(200, seed=len(name)))
    (folder / "SST-2").mkdir()
    for name in ("train", "dev"):
        lines = [f"{text}\t{k % 2}" for k, text in enumerate(tiny.text(20).splitlines())]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text(tiny.text(50))
    run_all(ROOT / "packages/gpt2/README.md", folder)


LLAMAS = {"codellama_7b": 1, "llama2_7b": 1, "llama2-chat": 1, "codellama_34b": 2}
"""Folders -> layers: the card cuts the largest into two stages."""


def write_llamas(folder: Path) -> None:
    """Tiny models that can fill in, under the names that the card speaks of, and its runs."""
    from lm_llama import SPEC
    from lm_llama.tokenizer import LlamaTokenizer

    tokenizer = LlamaTokenizer(tiny.sentencepiece_model(infill=True))
    sizes = {
        "hidden_size": 32, "num_heads": 4, "n_kv_heads": 2, "intermediate_size": 48,
        "vocab_size": tokenizer.vocab_size, "seq_length": 512, "max_decode_length": 32,
    }  # fmt: skip
    for name, layers in LLAMAS.items():
        model = tiny.model(SPEC, **sizes, num_layers=layers)
        tiny.write_hf(model, SPEC, folder / name)
        tokenizer.save_pretrained(folder / name)
    runs = {
        "codellama_7b": {"runner_config": {"max_steps": 2}},
        "llama2_7b_lora": {"runner_config": {"max_steps": 2}},
        "predict_codellama_34b": {"parallel_config": {"model_parallel": 2}},
    }
    for name, changes in runs.items():
        config = {**sizes, "num_layers": LLAMAS.get(name.removeprefix("predict_"), 1)}
        config["use_flash_attention"] = name == "codellama_7b"
        run = {"base": name, "model": {"model_config": {"preset": "llama_tiny", **config}}}
        (folder / f"tiny_{name}.yaml").write_text(yaml.safe_dump({**run, **changes}))


def write_data_of_llama(folder: Path) -> None:
    for name in ("train", "valid"):
        (folder / f"wiki.{name}.tokens").write_text(tiny.text(200, seed=len(name)))
    made = [
        {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))}
        for n in range(2, 8)
    ]
    (folder / "code_alpaca_20k.json").write_text(json.dumps(made))
    problems = [
        {"task_id": f"t/{name}", "prompt": f"def {name}(x):\n", "entry_point": name,
         "test": "def check(f):\n    assert f(1) == 2\n"}
        for name in ("double", "more")
    ]  # fmt: skip
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(problem) + "\n" for problem in problems)


@pytest.mark.slow
def test_the_model_card_of_llama(folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_llamas(folder)
    write_data_of_llama(folder)
    # Some containers forbid the sandbox; the command then says so, and its own tests are skipped.
    leave_out = None
    try:
        runner.require()
    except SandboxError:
        leave_out = "evaluate humaneval"
    try:
        run_all(ROOT / "packages/llama/README.md", folder, SMALLER_LLAMA, leave_out)
    finally:
        if (folder / "pid").exists():
            os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


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


def test_core(folder):
    run_all(ROOT / "core/README.md", folder)


def test_commands_for_contributors_name_things_that_exist():
    """They are hatch's own; what they are given must be there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in ("tests/test_layering.py", ".ci/run", "lm_core/testing/parity.py"):
        assert path in text
        assert (ROOT / path).exists() or (ROOT / "core/src" / path).exists()
