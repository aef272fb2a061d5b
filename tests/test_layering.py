"""Who may import whom. The rules are those of CONTRIBUTING.md, "Layers"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sources import CORE, PACKAGES, ROOT, Import, imports, module_name, read_imports, source_files

LAYERS = [
    ["errors", "log", "heartbeat", "cache"],
    ["config", "checkpoint.layout"],
    ["spec"],
    ["parallel"],
    ["nn"],
    ["peft", "checkpoint", "data", "tokenizer", "metrics", "sandbox"],
    ["train", "generation", "serving"],
    ["export"],
    ["tasks", "auto", "job", "trainer", "pipeline"],
    ["cli", "launch", "testing"],
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

LATE_BINDING = {
    # Methods that users expect on the model object; each is one line that hands over.
    ("lm_core.nn.decoder", "lm_core.generation.generate"),
    ("lm_core.nn.network", "lm_core.auto"),
    # Meta's description of a Llama lacks the vocabulary, whose size is that of a tensor.
    ("lm_core.config.of_checkpoint", "lm_core.checkpoint.hub"),
}
"""Upward imports inside a function. Each needs a reason that a reviewer accepts."""

MINDSPORE_AT_IMPORT = (
    "nn",
    "parallel.backend",
    "parallel.collectives",
    "peft",
    "train",
    "generation",
    "export.folder",
    "export.graphs",
    "export.exported",
)
MINDSPORE_IN_CALLS = (
    *MINDSPORE_AT_IMPORT,
    "parallel",
    "checkpoint.io",
    "checkpoint.transform",
    "data.mindrecord",
    "data.pipeline",
    "tokenizer.padding",  # return_tensors="ms"
    "tasks",
    "auto",
    "trainer",
    "pipeline",
    "testing",
)
MINDSPORE_IN_PACKAGES = ("model",)


def unit(module: str) -> str:
    """The longest name in LAYERS: lm_core.checkpoint.layout.ops -> checkpoint.layout."""
    inner = module.removeprefix("lm_core.")
    found = [name for name in RANK if inner == name or inner.startswith(f"{name}.")]
    assert found, f"{module} is in no layer; place it in LAYERS"
    return max(found, key=len)


def within(module: str, package: str, places: tuple[str, ...]) -> bool:
    inner = module.removeprefix(f"{package}.")
    return any(inner == place or inner.startswith(f"{place}.") for place in places)


def core_imports() -> list[Import]:
    # lm_core/__init__ only names where the public API lives.
    return [found for found in imports(CORE) if found.module != "lm_core"]


def report(found: list[Import]) -> str:
    return "\n".join(map(str, found))


def test_every_core_module_has_a_layer():
    for path in source_files(CORE):
        module = module_name(path, CORE / "src")
        if module not in ("lm_core", "lm_core.checkpoint"):
            assert unit(module) in RANK


def test_core_imports_no_higher_layer():
    wrong = [
        found
        for found in core_imports()
        if found.target.startswith("lm_core.")
        and found.when != "typing"
        and RANK[unit(found.target)] > RANK[unit(found.module)]
        and not (found.when == "call" and (found.module, found.target) in LATE_BINDING)
    ]
    assert not wrong, report(wrong)


def test_late_bindings_are_all_needed():
    used = {(found.module, found.target) for found in core_imports() if found.when == "call"}
    assert used >= LATE_BINDING


def test_core_modules_do_not_import_each_other_in_a_circle():
    edges: dict[str, set[str]] = {}
    for found in core_imports():
        if found.when == "import" and found.target.startswith("lm_core."):
            edges.setdefault(found.module, set()).add(found.target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in edges.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_core_knows_no_package():
    own = tuple(f"lm_{path.name}" for path in PACKAGES)
    wrong = [found for found in imports(CORE) if found.target.split(".")[0] in own]
    assert not wrong, report(wrong)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages_do_not_know_each_other(package: Path):
    wrong = [
        found
        for found in imports(package)
        if (top := found.target.split(".")[0]).startswith("lm_")
        and top not in ("lm_core", f"lm_{package.name}")
    ]
    assert not wrong, report(wrong)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_network_imports_layers_and_its_sizes(package: Path):
    own = f"lm_{package.name}"
    path = package / "src" / own / "model.py"
    wrong = [
        found
        for found in read_imports(path, f"{own}.model")
        if found.when != "typing"
        and found.target.startswith("lm_")
        and not found.target.startswith("lm_core.nn")
        and found.target != f"{own}.config"
    ]
    assert not wrong, report(wrong)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages_keep_mindspore_in_the_network(package: Path):
    own = f"lm_{package.name}"
    wrong = [
        found
        for found in imports(package)
        if found.target.split(".")[0] == "mindspore"
        and not within(found.module, own, MINDSPORE_IN_PACKAGES)
    ]
    assert not wrong, report(wrong)


def test_core_imports_mindspore_where_tensors_are():
    wrong = [
        found
        for found in core_imports()
        if found.target.split(".")[0] == "mindspore"
        and found.when != "typing"
        and not within(
            found.module,
            "lm_core",
            MINDSPORE_AT_IMPORT if found.when == "import" else MINDSPORE_IN_CALLS,
        )
    ]
    assert not wrong, report(wrong)


HEAVY = {
    "torch", "transformers", "peft", "huggingface_hub", "tensorboardX", "matplotlib", "fschat",
    "starlette", "uvicorn", "openai",
}  # fmt: skip
NEVER = {"transformers", "peft", "fschat", "fastchat"}


def test_extras_are_imported_when_used_and_some_things_never():
    wrong = [
        found
        for project in (CORE, *PACKAGES)
        for found in imports(project)
        if (top := found.target.split(".")[0]) in HEAVY and (found.when == "import" or top in NEVER)
    ]
    assert not wrong, report(wrong)


WITHOUT_MINDSPORE = """
import sys
from importlib import import_module
for name in {modules!r}:
    import_module(name)
from lm_core import spec
for found in spec.installed().values():
    assert list(found.presets) and list(found.tables) and list(found.preprocessors)
    assert found.run_names()
heavy = {{name.split(".")[0] for name in sys.modules}} & {heavy!r}
assert not heavy, heavy
"""


def test_light_modules_load_no_mindspore():
    """The rule of the imports, seen from outside: also through others, also in a spec."""
    light = ["lm_core", *sorted(light_modules())]
    script = WITHOUT_MINDSPORE.format(modules=light, heavy={"mindspore", *HEAVY})
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def light_modules() -> list[str]:
    heavy = (*MINDSPORE_AT_IMPORT, "testing")
    core = [module_name(path, CORE / "src") for path in source_files(CORE)]
    found = [name for name in core if name != "lm_core" and not within(name, "lm_core", heavy)]
    for package in PACKAGES:
        own = f"lm_{package.name}"
        names = [module_name(path, package / "src") for path in source_files(package)]
        found += [name for name in names if name != f"{own}.model"]
    return found
