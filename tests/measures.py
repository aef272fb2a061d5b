"""How long functions and files are, and the table of functions in CONTRIBUTING.md.

python tests/measures.py    # prints the table, which a test compares with what is written there
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from sources import CORE, PACKAGES, ROOT, all_sources, parse

Function = ast.FunctionDef | ast.AsyncFunctionDef

HEAD = (
    "| | functions | median | 90 % | 99 % | longest |",
    "|---|---|---|---|---|---|",
)


def every_file() -> list[Path]:
    """Sources, tests and tools."""
    places = [CORE, *PACKAGES, ROOT / "tests", ROOT / "tools"]
    return sorted(
        file for place in places for file in place.rglob("*.py") if ".venv" not in file.parts
    )


def functions(files: Iterable[Path]) -> list[tuple[Path, Function]]:
    """Every function and method, inner ones too."""
    return [
        (file, node)
        for file in files
        for node in ast.walk(parse(file))
        if isinstance(node, Function)
    ]


def length(function: Function) -> int:
    """Lines of code, without the docstring."""
    first = function.body[0]
    docstring = ast.get_docstring(function, clean=False)
    own = (first.end_lineno or 0) - first.lineno + 1 if docstring is not None else 0
    return (function.end_lineno or 0) - function.lineno + 1 - own


def lines(file: Path) -> int:
    """Lines of a file, all of them."""
    return len(file.read_text(encoding="utf-8").splitlines())


def row(name: str, files: list[Path]) -> str:
    """A row of the table; functions are counted to two figures, which few changes change."""
    lengths = sorted(length(function) for _, function in functions(files))
    median, most, nearly_all = (lengths[len(lengths) * part // 100] for part in (50, 90, 99))
    figures = (float(f"{len(lengths):.2g}"), median, most, nearly_all, lengths[-1])
    cells = " | ".join(f"{figure:,.0f}" for figure in figures)
    return f"| {name} | {cells} |"


def table() -> str:
    """What users run, and all the rest."""
    sources = all_sources()
    rest = [file for file in every_file() if file not in set(sources)]
    return "\n".join((*HEAD, row("sources", sources), row("tests and tools", rest)))


if __name__ == "__main__":
    print(table())
