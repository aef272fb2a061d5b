"""Training of several processes that die, are stopped, and go on with others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs as helpers
import numpy as np
import pytest
import yaml
from jobs import Jobs, files, history, losses, steps

from lm_core.checkpoint import atomic

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS, EVERY = 60, 10
DP2 = (
    "parallel_config.data_parallel=2", "parallel_config.optimizer_shard=True",
    "runner_config.batch_size=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file: 7 steps an epoch, so that epochs end between checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    records = helpers.write_records(folder / "train.mindrecord", 31)
    settings = {
        "base": "gpt2_tiny", "seed": 5,
        "model": {"model_config": helpers.SIZES},
        "runner_config": {"epochs": 100, "batch_size": 4, "max_steps": STEPS},
        "lr_schedule": {"type": "constant", "learning_rate": 1e-3},
        "train_dataset": {"data_loader": {"dataset_dir": str(records)}},
        "callbacks": [
            {"type": "LossMonitor", "per_print_times": 1},
            {"type": "CheckpointMonitor", "prefix": "t", "save_checkpoint_steps": EVERY},
        ],
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    found = Jobs(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def unhurt(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that nothing happened to."""
    found = Jobs(tmp_path_factory.mktemp("unhurt"))
    try:
        ended = found.run("pretrain", "--config", run, *DP2, NPROC=2)
    finally:
        found.close()
    assert ended.status == 0, ended
    assert "DISTRIBUTED" not in ended.out + ended.errors
    output = found.folder / "output"
    assert [line["step"] for line in history(output)] == list(range(1, STEPS + 1))
    return output


def same(output: Path, expected: Path) -> None:
    """Both ranks have the steps and the bits of another run."""
    for rank in range(2):
        assert losses(output, rank) == losses(expected, rank)
        found = files(output, STEPS, rank)
        assert found == files(expected, STEPS, rank) and len(found) == 2


@contextmanager
def no_folder(folder: Path) -> Iterator[None]:
    """A place that nothing can be saved in, for anybody."""
    folder.rename(folder.with_name("aside"))
    folder.touch()
    yield
    folder.unlink()
    folder.with_name("aside").rename(folder)


def kill_in_a_save(jobs: Jobs, folder: Path) -> None:
    """Kills rank 1 while it writes: it is halted before it is looked at again."""
    number = jobs.worker(1)
    assert number is not None

    def halted() -> bool:
        if not (names := hidden(folder)):
            return False
        os.kill(number, signal.SIGSTOP)
        if names & hidden(folder):
            return True
        os.kill(number, signal.SIGCONT)  # that one was complete
        return False

    assert jobs.until(halted)
    os.kill(number, signal.SIGKILL)


def hidden(folder: Path) -> set[str]:
    """The checkpoints that are being written."""
    return {name for name in os.listdir(folder) if name.startswith(".")}


def length(output: Path) -> int:
    """The steps that rank 1 has noted."""
    path = output / "log/rank_1/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def in_step(jobs: Jobs, output: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until a job has done a step."""
    reached = jobs.until(lambda: process.poll() is not None or length(output) >= step)
    assert reached and process.poll() is None, process.communicate()


def test_a_rank_killed_at_start_in_a_step_and_in_a_save(
    jobs: Jobs, run: Path, unhurt: Path
) -> None:
    """Each time the job starts again, from the newest step that both ranks have.

    Before its second death rank 1 cannot save, and the job goes on without that checkpoint.
    """
    output = jobs.folder / "output"
    process = jobs.start("pretrain", "--config", run, *DP2, NPROC=2, MAX_RESTARTS=3)
    assert jobs.until(lambda: jobs.worker(1))
    os.kill(jobs.worker(1) or 0, signal.SIGKILL)
    in_step(jobs, output, EVERY + 3, process)
    with no_folder(output / "checkpoint/rank_1"):
        in_step(jobs, output, 2 * EVERY + 3, process)
    assert (steps(output, 0), steps(output, 1)) == ([EVERY, 2 * EVERY], [EVERY])
    os.kill(jobs.worker(1) or 0, signal.SIGKILL)
    assert jobs.until(lambda: length(output) < 2 * EVERY)  # it has gone back
    in_step(jobs, output, 2 * EVERY + 1, process)
    kill_in_a_save(jobs, output / "checkpoint/rank_1")
    common = max(set(steps(output, 0)) & set(steps(output, 1)))
    ended = jobs.finish(process)
    assert ended.status == 0, ended
    assert ended.errors.count("rank 1 was killed by SIGKILL") == 3
    for number in (1, 2, 3):
        assert f"restart {number} of 3, from the newest checkpoint" in ended.errors
    for step in (EVERY, common):
        assert f"t-{step}: step {step}" in ended.out
    log = (output / "log/rank_1/launch.log").read_text()
    assert log.count(f"CHECKPOINT NOT SAVED at step {2 * EVERY}") == 1
    assert not hidden(output / "checkpoint/rank_1")
    same(output, unhurt)


def test_a_death_ends_the_job(jobs: Jobs, run: Path) -> None:
    """Without restarts: soon, with the rank and what it said last."""
    process = jobs.start("pretrain", "--config", run, *DP2, NPROC=2)
    in_step(jobs, jobs.folder / "output", 5, process)
    os.kill(jobs.worker(1) or 0, signal.SIGKILL)
    ended = jobs.finish(process, seconds=30)
    assert ended.status == 137 and "Traceback" not in ended.out + ended.errors
    (problem,) = ended.problems
    assert "rank 1 was killed by SIGKILL" in problem and "log/rank_1/launch.log" in problem
    _, _, last = ended.errors.partition(problem)
    assert any("step 5/" in line for line in last.splitlines() if line.startswith("    "))


def test_stopped_and_gone_on_with_by_the_same_and_by_others(
    jobs: Jobs, run: Path, unhurt: Path
) -> None:
    """dp2 with SIGTERM, tp2 with Ctrl-C, one process; the same order of data and losses.

    The first saves in the background.
    """
    output, dp2 = jobs.folder / "output", (*DP2, "callbacks.CheckpointMonitor.async_save=True")
    process = jobs.start("pretrain", "--config", run, *dp2, NPROC=2)
    in_step(jobs, output, EVERY + 4, process)
    reached = stop(jobs, process, signal.SIGTERM, output)
    shutil.copytree(output, jobs.folder / "others")
    again = ("pretrain", "--config", run, "--resume_training", "true")
    ended = jobs.run(*again, *dp2, NPROC=2)
    assert ended.status == 0 and f"t-{reached}: step {reached}" in ended.out, ended
    same(output, unhurt)

    others = jobs.folder / "others"
    tp2 = (*again, "--output_dir", others, "parallel_config.model_parallel=2")
    process = jobs.start(*tp2, NPROC=2)
    in_step(jobs, others, reached + 6, process)
    stop(jobs, process, signal.SIGINT, others)
    ended = jobs.run(*again, "--output_dir", others)
    assert ended.status == 0, ended
    close_to(others, unhurt)


def stop(jobs: Jobs, process: subprocess.Popen[str], number: int, output: Path) -> int:
    """Asks the launcher to stop; the step that both ranks have saved, undamaged."""
    process.send_signal(number)
    ended = jobs.finish(process)
    assert ended.status == 128 + number, ended
    assert "Traceback" not in ended.out + ended.errors
    reached = max(steps(output, 0))
    assert max(steps(output, 1)) == reached < STEPS
    for rank in range(2):
        assert not atomic.verify(output / f"checkpoint/rank_{rank}/t-{reached}")
    assert f"stopped at step {reached} of {STEPS}" in ended.out
    return reached


def close_to(output: Path, expected: Path) -> None:
    """All steps, with losses and norms as near as other orders of sums allow."""
    found, wanted = np.array(losses(output)), np.array(losses(expected))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
