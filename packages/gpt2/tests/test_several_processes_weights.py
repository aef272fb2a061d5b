"""Weights that are split, trained, measured, merged and used by several processes and by one."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import jobs as helpers
import numpy as np
import pytest
import yaml
from jobs import Ended, Jobs, files, history, losses

from lm_core.cli import main
from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 4
TP2, DP2 = "parallel_config.model_parallel=2", "parallel_config.data_parallel=2"
PROMPTS = ["The red fox", "Our teacher counts"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A folder with a whole model, its vocabulary, records, and runs over them."""
    found = Jobs(tmp_path_factory.mktemp("work"))
    folder = found.folder
    helpers.write_records(folder / "train.mindrecord", 24)
    helpers.write_records(folder / "held_out.mindrecord", 11)  # 4, 4 and 3
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(20)], 280))
    end = tokenizer.eos_token_id
    own = {"vocab_size": tokenizer.vocab_size, "eos_token_id": end, "pad_token_id": end}
    sizes = {**helpers.SIZES, **own}
    del sizes["preset"]
    tiny.model(SPEC, **sizes).save_pretrained(folder / "whole", tokenizer=tokenizer)
    run = {
        "base": "gpt2_tiny", "seed": 5, "load_checkpoint": str(folder / "whole"),
        "model": {"model_config": {**helpers.SIZES, **own}},
        "runner_config": {"epochs": 1, "batch_size": 4, "max_steps": STEPS},
        "callbacks": [{"type": "CheckpointMonitor", "prefix": "t"}],
        "eval_step_interval": STEPS,
    }  # fmt: skip
    for name, file in (("train", "train"), ("eval", "held_out")):
        loader = {"dataset_dir": str(folder / f"{file}.mindrecord")}
        run[f"{name}_dataset"] = {"data_loader": loader}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    pet = {"pet_type": "lora", "lora_rank": 4, "target_modules": ".*(q|v|up|down)"}
    lora = {"base": str(folder / "run.yaml"), "model": {"model_config": {"pet_config": pet}}}
    (folder / "lora.yaml").write_text(yaml.safe_dump(lora))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def inside(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jobs.folder)


def finetune(jobs: Jobs, output: str, *words: str, run: str = "run.yaml") -> Path:
    """Trains as two ranks under tensor parallelism."""
    ended = jobs.run("finetune", "--config", run, "--output_dir", output, TP2, *words, NPROC=2)
    assert ended.status == 0, ended
    assert len(losses(jobs.folder / output)) == STEPS
    return jobs.folder / output


@pytest.fixture(scope="module")
def trained(jobs: Jobs) -> Path:
    """The output of two ranks that began with folders of their own, and evaluated at the end."""
    whole, parts = str(jobs.folder / "whole"), str(jobs.folder / "parts")
    assert main(["transform", "gpt2", "--src_ckpt_dir", whole, "--dst_ckpt_dir", parts, TP2]) == 0
    words = ("--load_checkpoint", parts, "auto_trans_ckpt=False", "do_eval=True")
    return finetune(jobs, "trained", *words)


@pytest.fixture(scope="module")
def merged(jobs: Jobs, trained: Path) -> Path:
    """Its last checkpoint as one model."""
    return merge_parts(trained, jobs.folder / "merged")


def merge_parts(source: Path, target: Path) -> Path:
    words = ["--src_ckpt_dir", str(source), "--dst_ckpt_dir", str(target)]
    assert main(["transform", "gpt2", *words]) == 0
    return target


def predicted(capsys: pytest.CaptureFixture[str], checkpoint: Path, run: str = "run.yaml") -> str:
    """What one process says."""
    capsys.readouterr()
    words = ["--config", run, "--load_checkpoint", str(checkpoint), "--predict_data", *PROMPTS]
    assert main(["predict", "gpt2", *words, "--max_new_tokens", "8", "--do_sample", "False"]) == 0
    return capsys.readouterr().out


def evaluated(text: str) -> dict[str, float]:
    """The scores that `evaluate` printed, once."""
    (line,) = [line for line in text.splitlines() if line.startswith("PerplexityMetric: ")]
    return ast.literal_eval(line.partition(": ")[2])["PerplexityMetric"]


def test_a_whole_model_and_its_parts_train_alike(jobs: Jobs, trained: Path) -> None:
    other = finetune(jobs, "from_whole")
    for rank in range(2):
        assert losses(other, rank) == losses(trained, rank)
        assert files(other, STEPS, rank) == files(trained, STEPS, rank)


def test_answers_of_two_ranks_are_those_of_the_merged_model(
    jobs: Jobs, trained: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = predicted(capsys, merged)
    assert alone.count("text_generation_text") == len(PROMPTS)
    ended = jobs.run(
        "predict", "--config", "run.yaml", "--output_dir", "said", TP2, "--load_checkpoint",
        trained, "--predict_data", *PROMPTS, "--max_new_tokens", "8", "--do_sample", "False",
        NPROC=2,
    )  # fmt: skip
    assert ended.status == 0, ended
    said = [line for line in ended.out.splitlines() if "text_generation_text" in line]
    assert said == alone.splitlines()
    assert "text_generation_text" not in (jobs.folder / "said/log/rank_1/launch.log").read_text()


def test_scores_are_those_of_one_process(
    jobs: Jobs, trained: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last batch is short: of its three records one rank of two gets one."""
    capsys.readouterr()
    words = ["--config", "run.yaml", "--load_checkpoint", str(merged)]
    assert main(["evaluate", "gpt2", *words]) == 0
    alone = evaluated(capsys.readouterr().out)
    of_tensor_ranks = [history(trained, rank)[-1] for rank in range(2)]
    ended = jobs.run("evaluate", *words, "--output_dir", "scores", DP2, NPROC=2)
    assert ended.status == 0, ended
    of_data_ranks = evaluated(ended.out)
    for name in ("loss", "PPL"):
        found = [line[f"eval_{name.lower()}"] for line in of_tensor_ranks]
        found.append(of_data_ranks[name])
        np.testing.assert_allclose(found, alone[name], rtol=1e-5, atol=0)


def test_adapters_of_two_ranks_merge(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    output = finetune(jobs, "adapters", run="lora.yaml")
    whole = merge_parts(output, jobs.folder / "with_adapter")
    words = ["--load_checkpoint", str(whole), "--output", "folded"]
    assert main(["merge", "gpt2", *words]) == 0
    folded, base = (jobs.folder / name / "model.safetensors" for name in ("folded", "whole"))
    assert folded.read_bytes() != base.read_bytes()
    assert predicted(capsys, folded.parent) == predicted(capsys, whole, "lora.yaml")


def refused(jobs: Jobs, verb: str, *words: str) -> str:
    """The one line of a job that cannot be."""
    shutil.rmtree(jobs.folder / "refused", ignore_errors=True)
    ended: Ended = jobs.run(
        verb, "--config", "run.yaml", "--output_dir", "refused", *words, NPROC=2
    )
    # Long before processes that wait for each other give up, however busy the machine is.
    assert ended.status == 2 and ended.seconds < 60, ended
    assert "Traceback" not in ended.out + ended.errors
    assert "Traceback" not in (jobs.folder / "refused/log/rank_1/launch.log").read_text()
    (problem,) = ended.problems
    return problem


def test_jobs_that_cannot_be_end_soon(jobs: Jobs) -> None:
    """Before anybody waits for the other ranks; what all of them say is shown once."""
    text = refused(jobs, "finetune", "parallel_config.model_parallel=4")
    assert "model_parallel 4 x pipeline_stage 1 = 4 processes, but 2 processes run" in text
    heads = ("model.model_config.num_heads=1", "load_checkpoint=")
    assert "2 does not divide 1 heads; use 1" in refused(jobs, "pretrain", TP2, *heads)
    stages = ("parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2")
    layers = ("model.model_config.num_layers=2", *stages)
    assert "pipeline_stage: is 2; must be 1 here" in refused(jobs, "evaluate", *layers)


def test_parts_of_other_degrees_are_refused_where_recutting_is_off(
    jobs: Jobs, trained: Path
) -> None:
    words = ("--load_checkpoint", str(trained), "auto_trans_ckpt=False")
    text = refused(jobs, "finetune", DP2, *words)
    assert "was written with" in text and "set auto_trans_ckpt: True" in text
