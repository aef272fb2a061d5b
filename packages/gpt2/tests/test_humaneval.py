"""`evaluate humaneval` with a real, tiny model."""

from __future__ import annotations

import json

import pytest

from lm_core.cli import main
from lm_core.errors import SandboxError
from lm_core.sandbox import runner
from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer

NAMES = ("double", "half_of_it", "x")
FILES = ("samples.jsonl", "samples.jsonl_results.jsonl")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with its vocabulary, and three problems."""
    try:
        runner.require()
    except SandboxError as error:
        pytest.skip(str(error))
    code = "def double(x):\n    return 2 * x\n\ndef half_of_it(x):\n    return x\n"
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(20), 9 * code], 300))
    end = tokenizer.eos_token_id
    ids = {f"{name}_token_id": end for name in ("bos", "eos", "pad", "unk")}
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, seq_length=64, **ids)
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    problems = [
        {"task_id": f"t/{name}", "prompt": f"def {name}(x):\n", "entry_point": name,
         "test": "def check(f):\n    assert f(1) == 2\n"}
        for name in NAMES
    ]  # fmt: skip
    text = "".join(json.dumps(problem) + "\n" for problem in problems)
    (tmp_path / "problems.jsonl").write_text(text)
    return tmp_path


def evaluate(folder, out: str, rows: int) -> dict[str, bytes]:
    words = ["evaluate", "gpt2", "humaneval", "--load_checkpoint", str(folder / "model")]
    words += ["--data_path", str(folder / "problems.jsonl"), "--output_dir", str(folder / out)]
    words += ["--num_samples", "3", "--temperature", "1", "--k", "1,3", "--seed", "5"]
    assert main([*words, "--max_new_tokens", "12", "--batch_size", str(rows)]) == 0
    return {name: (folder / out / name).read_bytes() for name in FILES}


def test_stopped_and_resumed_equals_never_stopped_in_any_batch(folder, capsys):
    whole = evaluate(folder, "whole", 3)
    samples = [json.loads(line) for line in whole["samples.jsonl"].splitlines()]
    assert len({sample["completion"] for sample in samples}) == 9
    # A line and a half, as a kill may leave them.
    (folder / "stopped").mkdir()
    cut = whole["samples.jsonl"].index(b"\n") + 20
    (folder / "stopped" / "samples.jsonl").write_bytes(whole["samples.jsonl"][:cut])
    settings = (folder / "whole" / "samples.settings.json").read_bytes()
    (folder / "stopped" / "samples.settings.json").write_bytes(settings)
    assert evaluate(folder, "stopped", 3) == whole

    def by_line(found):
        return {name: sorted(lines.splitlines()) for name, lines in found.items()}

    assert by_line(evaluate(folder, "one by one", 1)) == by_line(whole)
    said = capsys.readouterr().out.splitlines()
    assert said == ["HumanEval: {'pass@1': 0.0, 'pass@3': 0.0}"] * 3
