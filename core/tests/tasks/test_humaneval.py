"""`evaluate humaneval` with a model that stands in for a real one: samples, resuming, scoring."""

from __future__ import annotations

import ast
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core import AutoTokenizer, cli, job
from lm_core.parallel.context import ParallelContext
from lm_core.sandbox import runner

PROMPTS = {"t/0": "def f(x):\n", "t/1": "def g(x):\n    '''One more.'''\n"}
RIGHT = {"t/0": "    return x\n", "t/1": "    return x + 1\n"}
TESTS = {"t/0": "assert f(5) == 5", "t/1": "assert f(5) == 6"}


class Writer:
    """Knows both answers and goes on with a print; draws spoil every other answer."""

    def __init__(self, config, stop_after=None):
        self.config, self.context = config, ParallelContext.local()
        self.calls, self.stop_after = [], stop_after

    def generate(self, ids, settings, streamer=None, stop=None, **options):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(SimpleNamespace(ids=ids, settings=settings, **options))
        found = []
        for row in ids:
            prompt = "".join(map(chr, row))
            name = next(name for name, text in PROMPTS.items() if text == prompt)
            text = RIGHT[name] + "print(1)\nmore"
            if settings.do_sample and (settings.seed + len(row)) % 2:
                text = f"    return {settings.seed % 1000}\nx"
            end = next(
                n for n in range(len(text) + 1) if stop(np.array([*map(ord, text[:n])], int))
            )
            found.append(np.array([*row, *map(ord, text[:end])], np.int32))
        return found


class Characters:
    def __call__(self, texts, **_):
        return {"input_ids": [[*map(ord, text)] for text in texts]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


@pytest.fixture
def setting(look, tmp_path, monkeypatch):
    """`lm evaluate toy humaneval` on two problems; models that were loaded are in `models`."""
    problems = tmp_path / "problems.jsonl"
    lines = [
        {"task_id": name, "prompt": prompt, "entry_point": prompt[4], "canonical_solution": "",
         "test": f"def check(f):\n    {TESTS[name]}\n"}
        for name, prompt in PROMPTS.items()
    ]  # fmt: skip
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = SimpleNamespace(
        models=[], stop_after=None, context=99, problems=problems, out=tmp_path / "out"
    )

    def load(run, path, context, adapter=None):
        config = run.model.config.copy(seq_length=found.context, checkpoint_name_or_path="here")
        found.models.append(Writer(config, found.stop_after))
        return found.models[-1]

    def main(*words):
        base = ["evaluate", "toy", "humaneval", "--config", "toy", "--data_path", str(problems)]
        base += ["--load_checkpoint", str(tmp_path), "--tokenizer", str(tmp_path)]
        return cli.main([*base, "--output_dir", str(found.out), *words])

    found.main = main
    monkeypatch.setattr(job, "join", lambda run: ParallelContext.local())
    monkeypatch.setattr(job, "load", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Characters())
    monkeypatch.setattr(cli, "check_numpy", lambda: None)
    return found


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def printed(capsys) -> dict:
    return ast.literal_eval(capsys.readouterr().out.removeprefix("HumanEval: "))


def test_the_likeliest_answers_are_cut_run_and_counted(setting, capsys):
    assert setting.main() == 0
    assert printed(capsys) == {"pass@1": 1.0}
    samples = records(setting.out / "samples.jsonl")
    assert {s["task_id"]: s["completion"] for s in samples} == RIGHT
    results = records(setting.out / "samples.jsonl_results.jsonl")
    assert results == [{**s, "result": "passed", "passed": True} for s in samples]
    settings = setting.models[0].calls[0].settings
    assert not settings.do_sample and settings.max_new_tokens == 512


DRAWN = ("--num_samples", "7", "--temperature", "0.8", "--k", "1,3", "--batch_size", "1")


def test_draws_follow_from_seed_problem_and_number(setting, capsys):
    assert setting.main(*DRAWN, "--seed", "3") == 0
    settings = [call.settings for call in setting.models[0].calls]
    assert len(settings) == 14 and len({s.seed for s in settings}) == 7
    assert {(s.do_sample, s.temperature, s.top_p, s.top_k) for s in settings} == {
        (True, 0.8, 0.95, 0)
    }
    found = printed(capsys)
    passed = Counter(
        r["task_id"] for r in records(setting.out / "samples.jsonl_results.jsonl") if r["passed"]
    )
    assert found["pass@1"] == pytest.approx(sum(passed.values()) / 14)
    assert 0 < found["pass@1"] < found["pass@3"] < 1


@pytest.mark.parametrize("calls", [0, 1, 6, 13])
@pytest.mark.parametrize("torn", [0, 5])
def test_stopped_anywhere_and_resumed_equals_never_stopped(setting, capsys, tmp_path, calls, torn):
    assert setting.main(*DRAWN) == 0
    never = printed(capsys)
    whole = {name: (setting.out / name).read_bytes() for name in FILES}
    setting.out, setting.stop_after = tmp_path / "again", calls
    assert setting.main(*DRAWN) == 130
    written = setting.out / "samples.jsonl"
    if torn and calls:
        written.write_bytes(written.read_bytes()[:-torn])
    setting.stop_after = None
    assert setting.main(*DRAWN) == 0
    assert len(setting.models[-1].calls) == 14 - calls + bool(torn and calls)
    assert printed(capsys) == never
    assert {name: (setting.out / name).read_bytes() for name in FILES} == whole


FILES = ("samples.jsonl", "samples.jsonl_results.jsonl", "samples.settings.json")


def test_results_that_are_there_are_not_made_again(setting, capsys, monkeypatch):
    assert setting.main(*DRAWN) == 0
    first = printed(capsys)
    results = setting.out / FILES[1]
    whole = results.read_bytes()
    results.write_bytes(whole[: len(whole) // 2])
    ran = []

    def counted(tasks, *rest, original=runner.run_all):
        ran.extend(tasks)
        return original(ran, *rest)

    monkeypatch.setattr(runner, "run_all", counted)
    assert setting.main(*DRAWN) == 0
    assert printed(capsys) == first and results.read_bytes() == whole
    assert 7 <= len(ran) <= 8 and len(setting.models) == 1
    ran.clear()
    assert setting.main(*DRAWN) == 0
    assert printed(capsys) == first and not ran


def test_more_samples_go_on_from_fewer(setting, capsys):
    assert setting.main("--num_samples", "2", "--temperature", "1", "--batch_size", "1") == 0
    assert setting.main("--num_samples", "4", "--temperature", "1", "--batch_size", "1") == 0
    assert [len(model.calls) for model in setting.models] == [4, 4]
    assert len(records(setting.out / FILES[1])) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_samples", "3"], "temperature: is 0 with 3 samples, which would be equal"),
        (["--k", "1,2"], "k: is 2, of 1 samples for each problem; must be at most that"),
        (["--data_path", "nowhere"], "nowhere: No such file"),
    ],
)
def test_wrong_flags_are_one_line(setting, capsys, words, message):
    assert setting.main(*words) == 2
    error = capsys.readouterr().err
    assert f"error: {message}" in error and error.count("\n") == 1
    assert not setting.models


def test_samples_of_another_run_are_not_gone_on_with(setting, capsys):
    assert setting.main("--temperature", "0.5") == 0
    capsys.readouterr()
    assert setting.main("--temperature", "0.6", "--seed", "1") == 2
    error = capsys.readouterr().err
    assert "seed was 0 and is 1, temperature was 0.5 and is 0.6" in error


def test_prompts_that_are_too_long_are_named_before_anything_is_generated(setting, capsys):
    setting.context = 20
    assert setting.main() == 2
    error = capsys.readouterr().err
    assert "error: data_path: t/1: the longest prompt has 30 tokens; must be fewer than" in error
    assert not setting.models[0].calls


class TestSamplesFile:
    """`--samples_file`: no model."""

    def score(self, setting, tmp_path, samples, *words):
        path = tmp_path / "s.jsonl"
        path.write_text("".join(json.dumps(s) + "\n" for s in samples))
        base = ["evaluate", "toy", "humaneval", "--data_path", str(setting.problems)]
        return cli.main([*base, "--samples_file", str(path), *words])

    def samples(self, *answers):
        return [{"task_id": name, "completion": text} for name, text in answers]

    def test_both_forms_of_completions_are_scored(self, setting, tmp_path, capsys):
        whole = [(name, PROMPTS[name] + text) for name, text in RIGHT.items()]
        wrong = [(name, "    return 0\n") for name in RIGHT]
        answers = self.samples(*RIGHT.items(), *whole, *wrong)
        assert self.score(setting, tmp_path, answers, "--k", "1,2") == 0
        assert printed(capsys) == {"pass@1": pytest.approx(2 / 3), "pass@2": 1.0}
        results = records(tmp_path / "s.jsonl_results.jsonl")
        assert [r["passed"] for r in results] == [True] * 4 + [False] * 2
        assert results[-1]["result"] == "failed: AssertionError" and not setting.models

    def test_changed_samples_do_not_get_old_results(self, setting, tmp_path, capsys):
        assert self.score(setting, tmp_path, self.samples(*RIGHT.items())) == 0
        assert self.score(setting, tmp_path, self.samples(*reversed(RIGHT.items()))) == 2
        assert "holds results of other samples" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("answers", "words", "message"),
        [
            ([("t/0", "")], [], "t/1: no sample; each needs one"),
            ([("t/0", ""), ("t/1", ""), ("t/2", "")], [], "t/2: not in --data_path"),
            (
                [("t/0", ""), ("t/1", ""), ("t/1", "")],
                ["--k", "2"],
                "k: is 2, more than the samples of t/0",
            ),
        ],
    )
    def test_files_that_do_not_fit_are_one_line(
        self, setting, tmp_path, capsys, answers, words, message
    ):
        assert self.score(setting, tmp_path, self.samples(*answers), *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_nothing_runs_and_nothing_is_generated_without_protection(setting, capsys, monkeypatch):
    def refused(out, errors, status):
        from lm_core.errors import SandboxError

        raise SandboxError("sandbox: no")

    monkeypatch.setattr(runner, "_result", refused)
    assert setting.main() == 2
    assert capsys.readouterr().err == "error: sandbox: no\n"
    assert not setting.models and not setting.out.exists()
