"""The benchmark's own parts: workers that fail, ratios, and the report that keeps what we wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "tools" / "bench"

ECHO = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["method"] == "die":
        print("the last words", file=sys.stderr)
        sys.exit(3)
    if request["method"] == "sleep":
        import time
        time.sleep(60)
    if request["method"] == "refuse":
        print(json.dumps({"error": "cannot"}), flush=True)
        continue
    print(json.dumps({"result": request["arguments"]}), flush=True)
"""


@pytest.fixture
def bench(monkeypatch):
    """The modules of tools/bench, which are a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    import driver
    import report

    yield driver, report
    for name in ("driver", "report", "scaling", "weights"):
        sys.modules.pop(name, None)


def _worker(driver, timeout: float = 30.0):
    return driver.Worker("echo", [sys.executable, "-c", ECHO], timeout=timeout)


def test_a_worker_answers(bench):
    driver, _ = bench
    with _worker(driver) as worker:
        assert worker.ask("anything", a=1, b=[2]) == {"a": 1, "b": [2]}
        with pytest.raises(driver.ContenderError, match="echo.refuse: cannot"):
            worker.ask("refuse")
        assert worker.ask("again") == {}


def test_a_worker_that_dies_says_why(bench):
    driver, _ = bench
    with (
        _worker(driver) as worker,
        pytest.raises(driver.ContenderError, match="ended with status 3\nthe last words"),
    ):
        worker.ask("die")


def test_a_worker_that_hangs_is_ended(bench):
    driver, _ = bench
    with (
        _worker(driver, timeout=0.5) as worker,
        pytest.raises(driver.ContenderError, match="has not answered for 0 s"),
    ):
        worker.ask("sleep")


ROW = {
    "title": "decode", "unit": "tokens/s", "higher": True, "targets": [["peer", 1.5]],
    "versions": {"lm": "lm 1", "peer": "peer 2"}, "missing": {"other": "not installed"},
    "values": {"lm": [20.0, 30.0, 10.0], "peer": [10.0, 10.0, 10.0]},
}  # fmt: skip


def test_ratios_are_of_the_same_round(bench):
    _, report = bench
    assert report.ratios([20.0, 30.0], [10.0, 5.0]) == [2.0, 6.0]
    table = report.table({"decode": ROW})
    assert "| decode | peer | **2.00** (1.00 - 3.00) | >= 1.5 | yes | 20 tokens/s |" in table
    assert "| decode | other | not installed |" in table
    worse = {**ROW, "higher": False}
    assert "<= 1.5 | **no** |" in report.table({"decode": worse})
    near = {**ROW, "higher": None}
    assert "within x 1.5 | **no** |" in report.table({"decode": near})
    for theirs in (22.0, 18.0):
        values = {"values": {"lm": [20.0], "peer": [theirs]}}
        assert "within x 1.5 | yes |" in report.table({"decode": {**near, **values}})


def test_a_plan_is_measured_by_a_process_that_trains(bench, tmp_path, monkeypatch):
    """The run that is measured is the one that is foretold."""
    import rows

    asked = []

    class Process:
        def __init__(self, name: str) -> None:
            assert name == "lm"

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, method: str, **arguments):
            asked.append((method, arguments.get("run")))
            return {"version": "lm 1", "pretrain": None, "peak_memory": 4.5e9}[method]

    monkeypatch.setattr(rows, "Worker", Process)
    found = rows.Bench(tmp_path, ["lm"], 1).measure("plan_gpt2")
    assert found["values"]["lm"] == [4.5] and 4.0 < found["values"]["lm plan"][0] < 5.0
    assert ("pretrain", rows.ROWS["plan_gpt2"].arguments["run"]) in asked
    for name in ("rows", "probe"):
        sys.modules.pop(name, None)


def test_what_we_wrote_by_hand_is_kept(bench, tmp_path):
    _, report = bench
    path = tmp_path / "RESULTS.md"
    report.write(path, {"decode": ROW})
    path.write_text(path.read_text() + "\nWe tried magic.\n")
    report.write(path, {"decode": {**ROW, "values": {"lm": [30.0], "peer": [10.0]}}})
    text = path.read_text()
    assert "We tried magic." in text and "**3.00**" in text and "**2.00**" not in text
    assert text.count(report.BEGIN) == 1


def test_the_model_is_one_that_we_read(bench, tmp_path):
    """The benchmark's random weights load, and have the published names and shapes."""
    import weights

    from lm_core import AutoModel

    sizes = {"layers": 1, "hidden": 16, "heads": 2, "vocabulary": 40, "positions": 32}
    weights.make(tmp_path, sizes)
    model = AutoModel.from_pretrained(tmp_path)
    assert model.config.num_layers == 1
    rows = model.generate([[1, 2, 3]], max_new_tokens=4, do_sample=False, eos_token_id=[])
    assert len(rows[0]) == 7
