"""What a reader may count on in every file. The rest of style is ruff's business."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from measures import Function, every_file, functions, length, lines, table
from sources import CORE, PACKAGES, ROOT, all_sources, parse

FILE_LINES = 400
FUNCTION_LINES = 60
MIDDLE_LINES = 12
PACKAGE_LINES = 900
YAML_LINES = 40
VERBS = "pre-train, fine-tune, evaluate, generate, {chats}serve, convert, export"
SECTIONS = (
    "Install", "A checkpoint", "Generate", "Export", "Fine-tune", "Evaluate",
    "Splitting and merging checkpoints",
)  # fmt: skip
MAY_PRINT = ("tasks", "cli.py", "launch")
CLOSED_IN = {("sandbox", "program.py"), ("sandbox", "judge.py")}
"""Processes without files, network and privileges, see `lm_core.sandbox`."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    assert not {name(file): lines(file) for file in every_file() if lines(file) > FILE_LINES}


def test_functions_are_short():
    assert not {
        f"{name(file)}:{function.lineno}: {function.name}": length(function)
        for file, function in functions(every_file())
        if length(function) > FUNCTION_LINES
    }


def test_the_middle_function_is_about_ten_lines():
    lengths = sorted(length(function) for _, function in functions(all_sources()))
    assert lengths[len(lengths) // 2] <= MIDDLE_LINES


def test_lengths_are_those_that_are_written_down():
    """Else replace the table in CONTRIBUTING.md by what `python tests/measures.py` prints."""
    assert table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_sources_are_ascii():
    """Others are written as \\N{NAME}; Chinese prompts and data are the exception."""
    odd = [
        f"{name(file)}:{number}: {line.strip()}"
        for file in all_sources()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if not line.isascii() and not any("\u2e80" <= character <= "\uffef" for character in line)
    ]
    assert not odd


def test_only_commands_print():
    wrong = [
        f"{name(file)}:{node.lineno}"
        for file in all_sources()
        if not any(place in file.parts for place in MAY_PRINT)
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "pprint", "pprint.pprint")
    ]
    assert not wrong


def test_functions_say_their_types():
    wrong = [
        f"{name(file)}:{function.lineno}: {function.name}"
        for file, function in functions(all_sources())
        if not is_annotated(function)
    ]
    assert not wrong


def is_annotated(function: Function) -> bool:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    first = named[:1] if named and named[0].arg in ("self", "cls") else []
    return function.returns is not None and all(
        a.annotation for a in [*named, *starred] if a not in first
    )


def test_nothing_is_unpickled_or_executed():
    """Weights and data are never code; programs to be judged are, in their two processes."""
    forbidden = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "np.load",
        "numpy.load",
        "torch.load",
    }
    wrong = []
    for file in all_sources():
        if file.parts[-2:] in CLOSED_IN:
            continue
        for node in ast.walk(parse(file)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in forbidden
                and not is_safe(node)
            ):
                wrong.append(f"{name(file)}:{node.lineno}: {ast.unparse(node.func)}")
    assert not wrong


def is_safe(call: ast.Call) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    loader = given.get("Loader", "")
    return (
        given.get("weights_only") == "True"
        or "Safe" in loader
        or given.get("allow_pickle") == "False"
        or (len(call.args) > 1 and "Loader" in ast.unparse(call.args[1]))
    )


@pytest.mark.parametrize("project", [CORE, *PACKAGES], ids=lambda path: path.name)
def test_projects_have_their_files(project: Path):
    assert (project / "README.md").read_text().startswith("# ")
    assert any((project / "tests").rglob("test_*.py"))
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert table["requires-python"] == ">=3.11,<3.13"
    assert table["license"] == "Apache-2.0"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages_are_small_and_alike(package: Path):
    source = package / "src" / f"lm_{package.name}"
    for noun in ("__init__", "config", "model", "weights", "tokenizer", "data"):
        assert (source / f"{noun}.py").is_file(), noun
    lines = sum(len(file.read_text().splitlines()) for file in source.rglob("*.py"))
    assert lines <= PACKAGE_LINES
    table = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert table["entry-points"]["lm.models"] == {package.name: f"lm_{package.name}:SPEC"}
    chats = "chat, " if (source / "chat.py").is_file() else ""
    assert table["description"].endswith(f" on MindSpore: {VERBS.format(chats=chats)}")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_model_cards_have_their_sections(package: Path):
    lines = (package / "README.md").read_text(encoding="utf-8").splitlines()
    assert not [section for section in SECTIONS if f"## {section}" not in lines]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_run_files_say_only_what_a_run_decides(package: Path):
    files = list((package / "src" / f"lm_{package.name}" / "configs").glob("*.yaml"))
    assert files
    long = {
        file.name: count
        for file in files
        if (count := len(file.read_text().splitlines())) > YAML_LINES
    }
    assert not long


def test_versions_agree():
    projects = [
        tomllib.loads((path / "pyproject.toml").read_text())["project"]
        for path in (CORE, *PACKAGES)
    ]
    assert len({project["version"] for project in projects}) == 1
    for project in projects[1:]:
        assert f"lm-core=={projects[0]['version']}" in project["dependencies"]
