"""`lm plan`: what is printed about a run, alone and as one of many processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_core import cli
from lm_core.parallel import machine


@pytest.fixture
def plan(look, capsys, monkeypatch):
    """Prints a plan on a machine of 8 GiB."""
    monkeypatch.setattr(machine, "memory", lambda: 8 << 30)
    monkeypatch.setattr(machine, "free_memory", lambda: 6 << 30)
    monkeypatch.setattr(machine, "has_ascend", lambda: False)

    def run(*words: str) -> list[str]:
        assert cli.main(["plan", *words]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def cells(lines: list[str], kind: str, verb: str = "training") -> list[str]:
    """The sizes of a line in the table of a verb."""
    start = next(n for n, line in enumerate(lines) if line.startswith(verb))
    found = next(line for line in lines[start:] if line.split()[:1] == [kind])
    words = found.split()[1:]
    return [" ".join(pair) for pair in zip(words[::2], words[1::2], strict=True)]


def test_parameters_by_part(plan):
    lines = plan("toy")
    assert lines[0] == "toy: 3,056 parameters, all trained, float32"
    # 300 x 8, and in each of 2 blocks 8 x 8, 8 x 32 and 8.
    numbers = {line.split()[0]: line.split()[1] for line in lines[1:5]}
    assert numbers == {"embedding": "2,400", "norms": "16", "attention": "128", "mlp": "512"}
    assert lines[1].endswith("78.5 %")


def test_what_is_exact_is_exact(plan):
    lines = plan("toy", "optimizer.type=adamw")
    assert cells(lines, "weights") == ["11.9 KiB"] and cells(lines, "optimizer") == ["23.9 KiB"]
    assert cells(plan("toy", "optimizer.type=sgd"), "optimizer") == ["0 B"]
    assert cells(plan("toy", "--gradient_accumulation_steps", "2"), "buffers") == ["11.9 KiB"]
    half = plan("toy", "model.model_config.param_init_type=float16")
    assert cells(half, "weights") == ["5.97 KiB"] and cells(half, "optimizer") == ["23.9 KiB"]
    # Keys and values of 2 blocks, 3 rows of 4 tokens of 8 float32.
    rows = plan("toy", "predict_batch_size=3")
    assert cells(rows, "cache", "generation") == ["1.5 KiB"]
    assert "generation: 3 x 4 tokens" in "\n".join(rows)


def test_ranks(plan):
    words = ("parallel_config.data_parallel=4", "parallel_config.model_parallel=2")
    lines = plan("toy", *words)
    assert "each of 8" in "\n".join(lines)
    one, each = cells(lines, "weights")
    assert (one, each) == ("11.9 KiB", "6 KiB")  # norms are whole everywhere
    assert cells(lines, "optimizer")[1] == "12 KiB"
    sharded = plan("toy", *words, "parallel_config.optimizer_shard=True", "use_parallel=True")
    assert cells(sharded, "optimizer") == ["3 KiB"]
    staged = plan("toy", "parallel_config.pipeline_stage=2")
    assert cells(staged, "weights")[1] == "10.7 KiB"  # the table, and one of two blocks


def test_the_machine(plan, monkeypatch):
    assert plan("toy")[-2:] == [
        "machine: 8 GiB of RAM, 6 GiB of it free",
        "  one process: training fits, generation fits",
    ]
    monkeypatch.setattr(machine, "free_memory", lambda: 570 << 20)
    assert "training does not fit" in plan("toy")[-1] and "generation fits" in plan("toy")[-1]
    ascend = ("context.device_target=Ascend",)
    assert plan("toy", *ascend)[-1].startswith("device: Ascend; say what it has")
    lines = plan("toy", *ascend, "context.max_device_memory=1GiB")
    assert lines[-2:] == ["device: Ascend, 1GiB", "  one process: training fits, generation fits"]


def test_the_model_is_found_in_the_run(plan):
    Path("mine.yaml").write_text("base: toy_big\n")
    expected = plan("toy", "--config", "mine.yaml")
    assert plan("--config", "mine.yaml") == plan("mine.yaml") == expected
    assert expected == plan("toy_big") != plan("toy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "none.yaml"], "'none.yaml' is neither a file nor one of toy, toy_big"),
        (["toy", "model.model_config.num_heads=3"], "num_heads: 3 does not divide hidden_size 8"),
        (
            ["toy", "context.device_target=Ascend", "context.max_device_memory=much"],
            "context.max_device_memory: 'much' is no size",
        ),
    ],
)
def test_refused(look, capsys, words, said):
    assert cli.main(["plan", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""
