"""The benchmark's own parts: workers that fail, ratios, and the report that keeps what we wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

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


def test_conversion_is_measured_in_a_process_of_its_own(bench, tmp_path):
    """Of what is written all is read again; a process with NumPy alone takes less than allowed."""
    import conversion

    made = conversion.Published("baichuan2_tiny", 1)
    assert made.largest == 2 * 1024 * 64 and made.size > 2 * made.largest
    found = conversion.measured(tmp_path, "baichuan2_tiny", 1, "mindformers", rounds=2)
    allowed = found[conversion.ALLOWED]
    assert allowed == [(2 * made.largest + 500e6) / 1e9] * 2
    assert all(0.02 < used < allowed[0] for used in found["lm"])
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["baichuan2_tiny-1"]  # what was converted is gone


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
    assert "| decode | other | not installed | | | 20 tokens/s | | |" in table
    worse = {**ROW, "higher": False}
    assert "<= 1.5 | **no** |" in report.table({"decode": worse})
    near = {**ROW, "higher": None}
    assert "within x 1.5 | **no** |" in report.table({"decode": near})
    for theirs in (22.0, 18.0):
        values = {"values": {"lm": [20.0], "peer": [theirs]}}
        assert "within x 1.5 | yes |" in report.table({"decode": {**near, **values}})


def test_a_share_of_the_bandwidth_may_be_asked_for(bench):
    _, report = bench
    shares = {"shares": {"lm": [0.8, 0.86, 0.9], "peer": [0.5, 0.4, 0.3]}}
    assert "| lm 86 %, they 40 % |" in report.table({"decode": {**ROW, **shares}})
    for least, met in ((0.85, "yes"), (0.9, "**no**")):
        row = {**ROW, **shares, "least_share": least}
        cell = f"| lm 86 % (>= {100 * least:.0f} %: {met}), they 40 % |"
        assert cell in report.table({"decode": row})


def test_memory_is_that_of_the_worker_alone(bench):
    """Not that of the process that started it, which is held against it by `ru_maxrss`."""
    held = b"x" * (300 << 20)
    # The peak last: it is at least what was there before.
    code = "import worker; print(worker.memory('VmRSS'), worker.memory('VmHWM'))"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, check=True
    )
    now, peak = map(int, told.stdout.split())
    assert 1e6 < now <= peak < len(held) / 2


def test_what_was_measured_is_kept_when_a_later_row_fails(bench, tmp_path, monkeypatch, capsys):
    driver, _ = bench
    import run

    def measure(self, name: str):
        if name == "decode8":
            raise driver.ContenderError("peer.load: is gone")
        return ROW

    monkeypatch.setattr(run.Bench, "measure", measure)
    folder = tmp_path / "new"
    assert run.main(["--rows", "decode1,decode8", "--output", str(folder)]) == 1
    assert "error: peer.load: is gone\n" in capsys.readouterr().err
    assert list(json.loads((folder / "results.json").read_text())) == ["decode1"]
    assert "| decode | peer | **2.00**" in (folder / "RESULTS.md").read_text()


def test_all_have_a_turn_in_each_round_and_another_begins(bench, tmp_path, monkeypatch):
    import bench as rounds

    monkeypatch.setattr(rounds.time, "sleep", lambda seconds: None)
    asked = []
    turns = {name: lambda name=name: asked.append(name) or len(asked) for name in "abc"}
    found = rounds.Bench(tmp_path, ["lm"], 2).in_turn(turns)
    assert asked == list("abcbca") and found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


def test_a_plan_is_measured_by_a_process_that_trains(bench, tmp_path, monkeypatch):
    """The run that is measured is the one that is foretold."""
    import bench as rounds
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

    monkeypatch.setattr(rounds, "Worker", Process)
    found = rounds.Bench(tmp_path, ["lm"], 1).measure("plan_gpt2")
    assert found["values"]["lm"] == [4.5] and 4.0 < found["values"]["lm plan"][0] < 5.0
    assert ("pretrain", rows.ROWS["plan_gpt2"].arguments["run"]) in asked


def test_what_we_wrote_by_hand_is_kept(bench, tmp_path):
    _, report = bench
    path = tmp_path / "RESULTS.md"
    report.write(path, {"decode": ROW})
    path.write_text(path.read_text() + "\nWe tried magic.\n")
    report.write(path, {"decode": {**ROW, "values": {"lm": [30.0], "peer": [10.0]}}})
    text = path.read_text()
    assert text.count(report.BEGIN_SCALING) == 1 and "| gpt2_52b | 2,048 |" in text
    assert "We tried magic." in text and "**3.00**" in text and "**2.00**" not in text
    assert text.count(report.BEGIN) == 1


SMALL = {"preset": "gpt2_tiny", "num_layers": 1, "vocab_size": 400, "seq_length": 16}


@pytest.fixture
def several(bench, monkeypatch):
    """Runs of a small model, six updates long."""
    import several

    monkeypatch.setattr(several, "MODEL", SMALL)
    monkeypatch.setattr(several, "STEPS", 6)
    return several


@pytest.mark.slow
def test_the_time_of_a_step_is_read_from_the_metrics_of_a_run(several, tmp_path):
    several.prepare(tmp_path / "runs")
    assert 0.0 < several.step_seconds(tmp_path / "runs", {}, "one") < 5.0
    lines = (tmp_path / "runs/one/log/rank_0/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("degrees", "batch"), [({"model_parallel": 2}, 8), ({"data_parallel": 2}, 4)]
)
def test_several_processes_get_the_same_batch(several, tmp_path, monkeypatch, degrees, batch):
    """The command is that of a user, and its result is taken for the whole batch only."""
    started = []

    def start(processes, words, folder):
        started.append((processes, words))
        log = tmp_path / "two" / "log" / "rank_0"
        log.mkdir(parents=True)
        step = {"tokens": 8 * 16, "tokens_per_second": 512.0}
        first = {"tokens": 8 * 16, "tokens_per_second": 1.0}
        lines = [first] * 4 + [step, {"eval_loss": 1.0}, step]
        (log / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(several, "_start", start)
    assert several.step_seconds(tmp_path, degrees, "two") == 0.25  # compiling does not count
    ((processes, words),) = started
    assert processes == 2 and words[:2] == ["-m", "lm_gpt2.pretrain"]
    assert words[words.index("--batch_size") + 1] == str(batch)
    (degree,) = degrees
    assert words[-3:] == ["--use_parallel", "True", f"parallel_config.{degree}=2"]


def test_runs_that_fail_say_why(bench, several, tmp_path, monkeypatch):
    driver, _ = bench
    (tmp_path / "run.yaml").write_text("base: nothing\n")
    with pytest.raises(driver.ContenderError, match="'nothing'"):
        several.step_seconds(tmp_path, {}, "one")
    monkeypatch.setattr(several, "PATIENCE", 0.1)
    with pytest.raises(driver.ContenderError, match="no end after 0.1 s"):
        several.step_seconds(tmp_path, {}, "one")


def test_half_of_a_batch_is_no_result(bench, several):
    driver, _ = bench
    with pytest.raises(
        driver.ContenderError, match=r"6 updates of \[64\] tokens; must be 6 of 128"
    ):
        several._seconds([{"tokens": 64, "tokens_per_second": 1.0}] * 6)


@pytest.fixture
def scaling(bench):
    import scaling

    return scaling


def test_links_between_cards(scaling):
    """Pairs of a mesh are linked; what goes further takes the slowest way."""
    new, old = scaling.CARDS["910B"], scaling.CARDS["910A"]
    assert new.rate(8, 1) == 7 * new.rate(2, 1) == 7 * 0.65 * 28e9
    assert new.rate(2, 8) == new.rate(64, 1) == 0.9 * 25e9
    assert old.rate(4, 1) == 3 * old.rate(2, 1)
    assert old.rate(8, 1) == old.rate(2, 4) == 0.65 * 31.5e9
    assert old.rate(2, 8) == 0.9 * 12.5e9


def step(scaling, *sizes, name="gpt2_13b"):
    return scaling.Model(scaling.Layout(name, *sizes), scaling.CARDS["910B"]).step()


def test_computing_takes_what_the_operations_need(scaling):
    """By hand: 6 operations for each weight and token, 2 more where blocks are recomputed."""
    found = step(scaling, 1, 8, 1, 4)
    tokens, blocks = 4 * 2 * 2048, 40 * 12 * 5120**2
    attention = 40 * 4 * 2048 * 5120 * tokens
    head = 50257 * 5120
    # The table is whole on each of the 8 ranks, and so are the logits.
    operations = 4 * (2 * blocks * tokens + attention) / 8 + 3 * 2 * head * tokens
    assert found.compute == pytest.approx(operations / 160e12, rel=1e-6)
    useful = 3 * (2 * (blocks + head) * tokens + attention)
    assert found.useful == pytest.approx(useful / (found.seconds * 8 * 320e12), rel=1e-6)
    # 40 blocks sum 6 tensors of float16, 4 times.
    size = 40 * 6 * 4 * 2 * (2 * 2048 * 5120)
    assert found.tensor == pytest.approx(
        2 * 7 / 8 * size / (7 * 0.65 * 28e9) + 960 * scaling.LATENCY, rel=1e-6
    )
    assert found.stages == found.data == 0.0


def test_more_cards_are_faster_and_less_efficient(scaling):
    """The same batch over more and more replicas: less computing each, as much to exchange."""
    found = [step(scaling, dp, 8, 1, 256 // dp) for dp in (1, 4, 64, 256)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert more.seconds < fewer.seconds and more.useful < fewer.useful
        assert more.data > fewer.data or more is found[-1]
    assert found[1].compute == pytest.approx(found[0].compute / 4)


def test_gradients_hide_behind_the_only_backward_pass(scaling):
    alone, added = step(scaling, 256, 8, 1, 1), step(scaling, 256, 8, 1, 2)
    # 3/4 of computing and of sums is the backward pass of recomputed blocks.
    hidden = 0.75 * (alone.compute + alone.tensor)
    assert added.data - alone.data == pytest.approx(hidden, rel=1e-6)


def test_stages_wait_for_the_first_and_the_last_micro_batch(scaling):
    short, long = (step(scaling, 1, 8, 8, count, name="gpt2_52b") for count in (8, 80))
    assert long.compute == pytest.approx(10 * short.compute)
    turn = short.compute / 8 + short.tensor / 8
    messages = (long.stages - short.stages) / 72
    assert short.stages == pytest.approx(8 * messages + 7 * (turn + messages), rel=1e-6)


def test_measured_overheads_stand_beside_the_model(scaling):
    assert "not measured" in scaling.measured({})
    row = {"title": "two", "values": {"lm": [0.2, 0.3, 0.1], "lm, one process": [0.1]}}
    assert "- two: 200 ms against 100 ms\n" in scaling.measured({"tp2_step": row})


def test_the_section_in_the_repository_is_that_of_the_code(bench, scaling):
    """Run `python tools/bench/scaling.py` and put its text there where this fails."""
    _, report = bench
    text = (BENCH / "RESULTS.md").read_text(encoding="utf-8")
    results = json.loads((BENCH / "results.json").read_text())
    inside = text.partition(report.BEGIN_SCALING)[2].partition(report.END_SCALING)[0]
    assert inside.strip() == scaling.section(results).strip()


def test_who_computes_something_else_is_found(bench):
    """One near tie among eight rows may be."""
    from driver import ContenderError
    from prompts import check_agreement

    def answers(*changes: tuple[int, int]) -> dict:
        other = [[row, 1, 2, 3, 4] for row in range(8)]
        for row, place in changes:
            other[row][place] = 99
        same = [[row, 1, 2, 3, 5] for row in range(8)]
        return {"lm": {"tokens": same}, "peer": {"tokens": other}}

    check_agreement(answers())
    check_agreement(answers((5, 1)))
    with pytest.raises(ContenderError, match="different tokens"):
        check_agreement(answers((5, 1), (6, 3)))
    with pytest.raises(ContenderError):  # of a single row all tokens count
        check_agreement({name: {"tokens": a["tokens"][5:6]} for name, a in answers((5, 1)).items()})


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_front_page_has_the_ratios_that_were_measured(bench, page):
    """Both languages have a row for each model: decoding 1 and 8, prefill, training, its memory."""
    _, report = bench
    rows = json.loads((BENCH / "results.json").read_text(encoding="utf-8"))
    text = (BENCH.parent.parent / page).read_text(encoding="utf-8")
    peers = {
        "decode1": "transformers", "decode8": "transformers", "prefill": "transformers",
        "train": "transformers, fused", "train_memory": "transformers, fused",
    }  # fmt: skip
    titles = {
        "GPT-2": "", "Llama": "llama_", "ChatGLM2": "glm2_", "Baichuan2": "baichuan2_",
        "PanGu-alpha": "pangualpha_",
    }  # fmt: skip
    for title, prefix in titles.items():
        values = [(rows[prefix + name]["values"], peer) for name, peer in peers.items()]
        found = [median(report.ratios(own["lm"], own[peer])) for own, peer in values]
        assert f"| {title} | {' | '.join(f'{ratio:.2f}' for ratio in found)} |" in text
