"""The solutions that HumanEval comes with: all pass, none passes for another problem, soon."""

from __future__ import annotations

from pathlib import Path

import pytest
from outside import DATA

from lm_core.data import jsonlines
from lm_core.data.humaneval import read_problems
from lm_core.sandbox import runner
from lm_core.sandbox.jail import Limits

PROBLEMS = DATA / "humaneval" / "HumanEval.jsonl.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"{PROBLEMS} is not here"),
]
LIMITS = Limits(seconds=20, wall_seconds=100.0)


@pytest.fixture(scope="module")
def file() -> Path:
    return PROBLEMS


def results(file: Path, completions: list[str]) -> list[str]:
    tasks = [
        runner.Task(
            program=problem.program(completion),
            prompt=problem.prompt,
            test=problem.test,
            entry_point=problem.entry_point,
        )
        for problem, completion in zip(read_problems(file).values(), completions, strict=True)
    ]
    return list(runner.run_all(tasks, LIMITS, runner.default_workers()))


def test_canonical_solutions_pass(sandbox, file):
    records = jsonlines.read(file, ["canonical_solution"])
    found = results(file, [record["canonical_solution"] for record in records])
    assert found == ["passed"] * 164


def test_stubs_do_not(sandbox, file):
    stubs = ["    pass\n", "    return 0\n", "", "    exit(0)\n"] * 41
    assert all(result.startswith("failed: ") for result in results(file, stubs))
