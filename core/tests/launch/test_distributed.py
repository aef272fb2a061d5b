"""Jobs that MindSpore itself forms: its scheduler, its ranks, its collectives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
REAL = Path(__file__).parent / "real"


def test_ranks_are_ours_and_meet(jobs):
    status, out, errors = jobs.run(folder=REAL, model="reduce")
    assert status == 0 and "rank 0 of 2: RANK_ID 0, sum 3\n" in out, errors
    assert "rank 1 of 2: RANK_ID 1, sum 3\n" in jobs.log(1)


def test_a_death_before_they_meet_ends_the_job(jobs):
    """MindSpore's scheduler and rank 0 would wait for ten minutes."""
    begin = time.monotonic()
    status, _, errors = jobs.run("1:die", folder=REAL, model="reduce")
    assert time.monotonic() - begin < 60
    assert (jobs.folder / "waiting").exists()
    assert status == 137 and "rank 1 was killed by SIGKILL" in errors
