"""The command line from outside: words in, text and exit status out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_core import cli
from lm_core import spec as registry
from lm_core.config.model import ModelConfig
from lm_core.errors import ConfigError, LmError
from lm_core.parallel import machine
from lm_core.spec import LazyMapping, ModelSpec


class ToyConfig(ModelConfig):
    vocab_size: int = 10
    hidden_size: int = 8
    num_layers: int = 1
    num_heads: int = 2
    seq_length: int = 4

    def parameter_count(self) -> int:
        return 1_234_567


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    (tmp_path / "toy.yaml").write_text("trainer: {model_name: toy}\nseed: 3\n")
    (tmp_path / "toy_big.yaml").write_text("base: toy\nmodel: {model_config: {num_layers: 2}}\n")
    made = ModelSpec(
        name="toy",
        config_class=ToyConfig,
        presets={"toy": ToyConfig(), "toy_big": ToyConfig(hidden_size=16)},
        build=lambda config, context: None,
        hf_types=("toy_hf",),
        tables={},
        tokenizer=lambda path: None,
        configs=tmp_path,
    )
    monkeypatch.setattr(registry, "installed", lambda: {"toy": made})
    monkeypatch.setattr(registry, "names", lambda: ["toy"])
    return made


CHECK = "check the path, its permissions and the space left"


class Task:
    """A verb that notes what it was given."""

    def __init__(self, result=0) -> None:
        self.result, self.calls = result, []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--own", type=int, help="a flag of this verb")

    def run(self, spec, args, overrides) -> int:
        self.calls.append((spec, args, overrides))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    made = Task()
    monkeypatch.setattr(cli, "_task", lambda verb: made)
    return made


def test_a_verb_gets_package_flags_and_overrides(spec, task):
    words = [
        "pretrain",
        "toy",
        "--config",
        "toy",
        "--own",
        "3",
        "seed=4",
        "--optimizer.beta1",
        "0.5",
        "--epochs",
        "2",
    ]
    assert cli.main(words) == 0
    ((given, args, overrides),) = task.calls
    assert given is spec and (args.config, args.own, args.epochs) == ("toy", 3, "2")
    assert sorted(overrides) == ["optimizer.beta1=0.5", "seed=4"]
    run = cli.resolve_run(spec, args, overrides)
    assert (run.seed, run.optimizer.beta1, run.runner_config.epochs) == (4, 0.5, 2)


def test_the_module_form_is_the_same_command(spec, task):
    words = ["--config", "toy", "seed=4"]
    assert cli.main(["finetune", "toy", *words]) == cli.run_verb("finetune", spec, words) == 0
    first, second = task.calls
    assert first == second


def test_a_preset_or_run_name_stands_for_its_run(spec, task):
    cli.main(["predict", "toy_big"])
    cli.main(["predict", "toy_big", "--config", "toy"])
    cli.main(["predict", "toy_hf"])
    cli.main(["predict", "toy"])
    assert [args.config for _, args, _ in task.calls] == ["toy_big", "toy", None, None]


def test_a_preset_without_a_run_file_is_a_run_of_defaults(spec, task):
    (spec.configs / "toy_big.yaml").unlink()
    cli.main(["predict", "toy_big"])
    ((_, args, overrides),) = task.calls
    assert cli.resolve_run(spec, args, overrides).model.config.hidden_size == 16


def test_the_status_of_the_verb_is_ours(spec, task):
    task.result = 7
    assert cli.main(["predict", "toy", "--config", "toy"]) == 7
    task.result = None
    assert cli.main(["predict", "toy", "--config", "toy"]) == 0


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (ConfigError("a: one", "b: two"), 2, ["error: a: one", "error: b: two"]),
        (LmError("a: with a\nline break"), 2, ["error: a: with a line break"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"),
            2,
            [f"error: x.json: No such file or directory; {CHECK}"],
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/y"),
            2,
            [f"error: /root/y: Permission denied; {CHECK}"],
        ),
    ],
)
def test_errors_are_lines_and_a_status(spec, task, capsys, error, status, lines):
    task.result = error
    assert cli.main(["predict", "toy", "--config", "toy"]) == status
    shown = capsys.readouterr()
    assert shown.err.splitlines() == lines and shown.out == ""


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), OSError(errno.ENOMEM, "no memory"), AssertionError(), KeyError("k")],
)
def test_bugs_keep_their_traceback(spec, task, error):
    task.result = error
    with pytest.raises(type(error)):
        cli.main(["predict", "toy", "--config", "toy"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian", "toy"], "did you mean pretrain?"),
        (["xyzzy"], "`lm --help` lists them"),
        (
            ["pretrain", "--config", "toy"],
            "the model is missing before --config; name one first: toy",
        ),
        (["pretrain", "toi"], "did you mean toy?"),
        (
            ["pretrain", "toy", "--bacth_size", "3"],
            "--bacth_size: unknown argument; did you mean --batch_size?",
        ),
        (["pretrain", "toy", "--conf", "toy"], "--conf: unknown argument; did you mean --config?"),
        (["pretrain", "toy", "stray"], "stray: unknown argument"),
        (["pretrain", "toy", "--a.b"], "has no value"),
        (["convert", "toy", "a=b"], "a=b: unknown argument"),
    ],
)
def test_wrong_words(spec, task, capsys, words, said):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and all(line.startswith("error: ") for line in err.splitlines())
    assert task.calls == []


def test_all_unknown_words_at_once(spec, task, capsys):
    assert cli.main(["pretrain", "toy", "--epoch", "3", "--sed", "4"]) == 2
    err = capsys.readouterr().err
    assert "--epoch: " in err and "did you mean --seed?" in err


def test_help(spec, task, capsys):
    for words in ([], ["--help"], ["help"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert "usage: lm VERB MODEL" in out and "toy" in out
    assert cli.main(["pretrain", "--help"]) == 0
    assert "models: toy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", "toy", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--train_dataset_dir" in out and "--own" in out and "key.sub=value" in out
    assert max(map(len, out.splitlines())) <= 130


def test_a_verb_may_say_more_about_a_common_flag(spec, task, monkeypatch):
    monkeypatch.setattr(
        task,
        "add_arguments",
        lambda parser: parser.add_argument("--device_id", type=int, help="mine"),
        raising=False,
    )
    assert cli.main(["predict", "toy", "--device_id", "3"]) == 0
    assert task.calls[0][1].device_id == 3


def test_a_verb_may_ask_for_the_package(spec, monkeypatch):
    seen = []
    module = SimpleNamespace(
        add_arguments=lambda parser, spec: seen.append(spec), run=lambda spec, args, overrides: 0
    )
    monkeypatch.setattr(cli, "_task", lambda verb: module)
    assert cli.main(["preprocess", "toy"]) == 0 and seen == [spec]


def test_a_verb_that_is_not_there_yet(spec, capsys, monkeypatch):
    monkeypatch.setattr(cli, "VERBS", {**cli.VERBS, "levitate": "rise"})
    assert cli.main(["levitate", "toy"]) == 2
    assert capsys.readouterr().err.startswith("error: lm levitate: is not part of lm ")
    assert "levitate" not in cli._usage()


def test_models(spec, capsys):
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "toy_big" in out and "1.23M parameters" in out and "runs: toy, toy_big" in out


def test_models_stand_in_columns(spec, capsys, monkeypatch):
    longest = "toy_with_a_very_long_name"
    more = replace(spec, presets={**spec.presets, longest: ToyConfig(num_layers=2)})
    monkeypatch.setattr(registry, "installed", lambda: {"toy": more})
    assert cli.main(["models"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " parameters " in line]
    assert len({row.index(" parameters ") for row in rows}) == 1
    assert any(row.startswith(f"  {longest} ") for row in rows)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lm 0.")


@pytest.mark.parametrize(
    ("version", "fine"), [("1.26.4", True), ("2.0.0", False), ("2.3.1rc1", False), ("10.0", False)]
)
def test_numpy_2_is_named_before_it_breaks_something(
    spec, task, capsys, monkeypatch, version, fine
):
    monkeypatch.setattr(machine.metadata, "version", lambda name: version)
    assert cli.main(["predict", "toy"]) == (0 if fine else 2)
    err = capsys.readouterr().err
    assert fine == (len(task.calls) == 1)
    assert (
        fine
        or err
        == f"error: numpy: {version} is installed; MindSpore needs 1.26; "
        "run pip install 'numpy>=1.26,<2'\n"
    )


def test_a_reader_that_has_gone_is_no_error():
    command = f"{sys.executable} -m lm_core.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and done.stdout.strip() in ("0", "141")


def test_lazy_mappings_load_when_they_are_used():
    mapping = LazyMapping("lm_core.cli:VERBS")
    assert "VERBS" in repr(mapping) and mapping["pretrain"] == cli.VERBS["pretrain"]
    assert (
        list(mapping) == list(cli.VERBS) and len(mapping) == len(cli.VERBS) and "x" not in mapping
    )
    with pytest.raises(ModuleNotFoundError):
        LazyMapping("lm_core.nothing:X").get("x")


# The registry.


class Point:
    def __init__(self, name: str, made) -> None:
        self.name, self.value, self.made = name, f"lm_{name}:SPEC", made

    def load(self):
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_a_package_that_does_not_import_is_named(monkeypatch):
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [Point("bad", ImportError("no module x"))]
    )
    registry.installed.cache_clear()
    try:
        with pytest.raises(
            ConfigError, match="model bad: lm_bad:SPEC cannot be imported .no module x."
        ):
            registry.installed()
        assert registry.names() == ["bad"]
    finally:
        registry.installed.cache_clear()


def test_finding_a_package(spec):
    for name in ("toy", "toy_big", "toy_hf"):
        assert registry.find(name) is spec
    with pytest.raises(ConfigError, match="installed: toy; did you mean toy_big?"):
        registry.find("toy_bigg")


def test_a_run_finds_its_package(spec, tmp_path: Path):
    assert registry.read_run("toy_big").model.config.num_layers == 2
    assert (
        registry.read_run({"model": {"model_config": {"preset": "toy_big"}}}, ["seed=4"]).seed == 4
    )
    path = tmp_path / "mine.yaml"
    path.write_text("base: toy_big\n")
    assert registry.read_run(path).seed == 3
    with pytest.raises(ConfigError, match="does not say which model"):
        registry.read_run({"seed": 1})
    with pytest.raises(ConfigError, match="no installed package knows 'nobody'"):
        registry.read_run({"trainer": {"model_name": "nobody"}})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_mindspore_is_imported_waits(number, status, tmp_path):
    """An exception inside of that import aborts the process, with a traceback of its own."""
    (tmp_path / "mindspore.py").write_text(
        "import time\nprint('begins', flush=True)\ntime.sleep(1)\nprint('ends', flush=True)\n"
    )
    program = (
        "import sys, time\nfrom lm_core.cli import guarded\n"
        "def call():\n    import mindspore\n    time.sleep(30)\nsys.exit(guarded(call))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "begins\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (status, "ends\n", "interrupted\n")
