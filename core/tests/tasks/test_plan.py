"""`lm plan`: what is printed about a run, alone and as one of many processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_core import cli
from lm_core.config import checks
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
    assert "8 ranks, rank = (stage x 4 + dp) x 2 + tp" in lines
    (row,) = table(lines)
    # Norms and the table are whole everywhere: 2,400 + 2 x (8 + (64 + 256) / 2).
    assert row[:6] == ["0", "0-7", "0-1", "0-3", "0-1", "2,736"]
    assert row[-1] == "embedding"
    assert cells(lines, "weights") == ["11.9 KiB", "10.7 KiB"]
    assert cells(lines, "optimizer")[1] == "21.4 KiB"
    split = plan("toy", *words, "parallel_config.vocab_emb_dp=False")
    assert cells(split, "weights")[1] == "6 KiB"
    for key in ("parallel_config.optimizer_shard=True", "parallel.enable_parallel_optimizer=True"):
        sharded = plan("toy", *words, key, "use_parallel=True")
        # Moments of norms, 2 x 4 x 16 bytes, are whole; those of the 2,720 others are cut by 4,
        # and each rank has the weights of its part once more.
        assert cells(sharded, "optimizer") == [f"{(128 + 12 * 2720 / 4) / 1024:.3g} KiB"]


def table(lines: list[str]) -> list[list[str]]:
    """The cells of the table of ranks."""
    start = next(n for n, line in enumerate(lines) if line.startswith("  stages  "))
    end = lines.index("", start)
    return [re.split(r"\s\s+", line.strip()) for line in lines[start + 1 : end]]


STAGED = (
    "toy",
    "model.model_config.num_layers=8",
    "parallel_config.pipeline_stage=4",
    "parallel_config.micro_batch_num=12",
)


def test_stages(plan):
    lines = plan(*STAGED, "parallel_config.data_parallel=2")
    rows = table(lines)
    # Stages that show no difference share a line. The table is at both ends: there is no head.
    assert [row[:3] for row in rows] == [
        ["0", "0-1", "0-1"],
        ["1-2", "2-5", "2-5, 2 each"],
        ["3", "6-7", "6-7"],
    ]
    assert [row[5] for row in rows] == ["3,056", "656", "3,056"]
    text = "\n".join(lines)
    # 2 records x 2 x 12, of 4 tokens; 3 of 12 + 3 turns are spent waiting.
    assert "an update: 48 records, 192 tokens (2 x data_parallel 2 x micro_batch_num 12)" in text
    assert "stages wait for 20.0 % of it: 3 of 12 + 3 turns" in text
    # 12 times 8 tokens of 8 numbers, and the gradient of 300 x 8.
    assert "pp activations 3 KiB in 12, ends gradients 9.38 KiB in 1" in text


def test_one_process_is_in_no_table_of_ranks(plan):
    assert not any("rank = " in line or "an update" in line for line in plan("toy"))


def test_the_fullest_stage_is_named(plan, monkeypatch):
    words = ("model.model_config.num_layers=9", "parallel_config.data_parallel=2")
    monkeypatch.setattr(machine, "free_memory", lambda: 600 << 20)
    verdict = plan(*STAGED, *words)[-1]
    # 3 of 9 blocks are in the first stage, and its table is in the last one, too.
    assert verdict.startswith("  each of 8: training does not fit (")
    assert " too much in stage 0), generation fits barely (most is in stage 0)" in verdict


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


def test_what_plan_reads_has_an_effect(plan, monkeypatch):
    """And what it does not read is named, once."""
    told = []
    monkeypatch.setattr(checks, "notice_once", lambda key, text: told.append(text))
    plan("toy", "context.device_target=Ascend", "context.max_device_memory=1GiB", "auto_tune=True")
    assert told == ["accepted, but without effect: auto_tune"]


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


def test_degrees_that_do_not_fit_are_told_together(look, capsys):
    """Whether or not processes are started, and by this verb: `config` shows them as they are."""
    words = [
        "parallel_config.model_parallel=3",
        "parallel_config.vocab_emb_dp=False",
        "parallel_config.pipeline_stage=4",
    ]
    for started in ([], ["use_parallel=True"]):
        assert cli.main(["plan", "toy", *words, *started]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert [line.partition("; ")[0] for line in captured.err.splitlines()] == [
            "error: parallel_config.model_parallel: 3 does not divide 2 heads",
            "error: parallel_config.model_parallel: 3 does not divide 32 feed-forward columns",
            "error: parallel_config.pipeline_stage: 4 is more than the 2 layers of the model",
            "error: parallel_config.micro_batch_num: 1 is less than pipeline_stage 4, so stages "
            "would idle all the time",
        ]
        assert cli.main(["config", "toy", *words, *started]) == 0
        capsys.readouterr()
