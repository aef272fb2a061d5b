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
from pathlib import Path

import pytest
import yaml
from readmes import ROOT, run_all

from lm_core.errors import SandboxError
from lm_core.launch.job import free_port
from lm_core.sandbox import runner
from lm_core.testing import tiny

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
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
    assert {"README.md", "CONTRIBUTING.md", "core/README.md", "docs/cards.md"} <= names
    assert {f"packages/{path.name}/README.md" for path in (ROOT / "packages").iterdir()} <= names


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
    run_all(ROOT / "README.md", folder, SMALLER)
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
    run_all(ROOT / "packages/gpt2/README.md", folder, SMALLER)


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


def test_core(folder):
    run_all(ROOT / "core/README.md", folder, SMALLER)


def test_commands_for_contributors_name_things_that_exist():
    """They are hatch's own; what they are given must be there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in ("tests/test_layering.py", ".ci/run", "lm_core/testing/parity.py"):
        assert path in text
        assert (ROOT / path).exists() or (ROOT / "core/src" / path).exists()
