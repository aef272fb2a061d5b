"""The commands, as a user starts them: quick, light, and clear about what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lm_gpt2

SOURCE = Path(lm_gpt2.__file__).parent


def runs(path: Path) -> bool:
    return "run_verb(" in path.read_text(encoding="utf-8")


LIGHT = """
import sys
sys.argv = ["lm", *{words!r}]
from lm_core.cli import main
try:
    status = main()
except SystemExit as exit:
    status = exit.code
loaded = {{name.partition(".")[0] for name in sys.modules}}
heavy = sorted(loaded & {{"mindspore", "numpy", "scipy", "torch", "safetensors"}})
print("STATUS", status, heavy)
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["models"], 0),
        (["predict", "gpt2", "--help"], 0),
        (["predict", "gpt3"], 2),
        (["predict", "gpt2", "--bacth_size", "3"], 2),
    ],
)
def test_help_and_errors_load_neither_mindspore_nor_numpy(words, status):
    done = run_python("-c", LIGHT.format(words=words))
    assert done.stdout.splitlines()[-1] == f"STATUS {status} []", done.stdout + done.stderr


@pytest.mark.parametrize("verb", [path.stem for path in sorted(SOURCE.glob("*.py")) if runs(path)])
def test_no_help_loads_mindspore(verb):
    """Each module that is a command, as `python -m` runs it."""
    done = run_python("-X", "importtime", "-m", f"lm_gpt2.{verb}", "--help")
    known = done.returncode == 0 and "usage: python -m lm_gpt2." in done.stdout
    assert known or "is not part of lm" in done.stderr, done.stderr[-2000:]
    assert "mindspore" not in done.stderr


def run_python(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=cwd
    )


def test_a_wrong_configuration_is_reported_without_mindspore(tmp_path: Path):
    words = [
        "predict",
        "gpt2",
        "--config",
        "gpt2_tiny",
        "optimizer.beta_1=3",
        "sed=4",
        "--epochs",
        "x",
        "--predict_data",
        "a",
    ]
    done = run_python("-c", LIGHT.format(words=words), cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "STATUS 2 []", done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "did you mean beta1?" in done.stderr and "did you mean seed?" in done.stderr
    assert re.search(r"error: --epochs: runner_config.epochs: is \"x\"", done.stderr)


def test_starting_costs_little_more_than_the_libraries_it_needs():
    """Interleaved, the best of several, as a ratio: a busy machine slows both."""

    def once(*words: str) -> float:
        start = time.perf_counter()
        run_python(*words)
        return time.perf_counter() - start

    ours, libraries = [], []
    for _ in range(5):
        libraries.append(once("-c", "import pydantic, yaml, argparse, importlib.metadata"))
        ours.append(once("-m", "lm_gpt2.predict", "--help"))
    assert min(ours) < 4 * min(libraries), (ours, libraries)
