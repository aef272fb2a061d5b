"""What the source files of the workspace are and what they import, read without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core"
PACKAGES = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))

When = Literal["import", "call", "typing"]


@dataclass(frozen=True)
class Import:
    """One imported module. `when`: as the file is imported, when a function is called, or never."""

    file: Path
    line: int
    module: str
    target: str
    when: When

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module} imports {self.target}"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(project: Path) -> list[Path]:
    return sorted((project / "src").rglob("*.py"))


def all_sources() -> list[Path]:
    """The code that users run; not the tests."""
    return [file for project in (CORE, *PACKAGES) for file in source_files(project)]


def imports(project: Path) -> list[Import]:
    """Every import of a project's source, relative ones made absolute."""
    found = []
    for path in source_files(project):
        found += read_imports(path, module_name(path, project / "src"))
    return found


def read_imports(path: Path, module: str) -> list[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return [
        Import(path, node.lineno, module, target, when)
        for node, when in _walk(parse(path), "import")
        for target in _targets(node, package)
    ]


def _walk(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            yield from ((found, "typing") for found, _ in _walk_all(child.body, when))
            yield from _walk_all(child.orelse, when)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, "call" if inner else when)


def _walk_all(
    body: list[ast.stmt], when: When
) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    yield from _walk(ast.Module(body=body, type_ignores=[]), when)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = package.split(".")
        base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
    # `from lm_core.config import load` imports lm_core.config.load where that is a module.
    return [
        f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base
        for alias in node.names
    ]


@cache
def _modules() -> frozenset[str]:
    return frozenset(
        module_name(path, project / "src")
        for project in (CORE, *PACKAGES)
        for path in source_files(project)
    )


def _is_module(name: str) -> bool:
    return name in _modules()
