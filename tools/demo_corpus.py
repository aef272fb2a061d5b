"""Real text that is on every machine: Python's language reference and its standard library.

The selection depends on file names alone, so it is the same wherever the same version of Python
runs. About every tenth file is held out: whole files, so that no held-out sentence has its other
half in the training text.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = (
    ".",
    "asyncio",
    "collections",
    "concurrent/futures",
    "ctypes",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "wsgiref",
    "xml/dom",
    "xml/etree",
    "xml/sax",
    "xmlrpc",
    "zoneinfo",
)
"""Of the standard library, without its tests and generated tables."""

SKIPPED = ("_sysconfigdata", "_pydecimal", "this", "antigravity", "turtledemo", "__phello__")
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """Texts by file name, split by file."""

    train: dict[str, str]
    held_out: dict[str, str]

    def __str__(self) -> str:
        train, held_out = (
            sum(map(len, part.values())) / 1e6 for part in (self.train, self.held_out)
        )
        return (
            f"{train:.1f} million characters of {len(self.train)} files to train on, "
            f"{held_out:.2f} million of {len(self.held_out)} others held out"
        )


def collect(megabytes: float) -> Corpus:
    """Takes files in the order of their names' digests until there is enough.

    Args:
        megabytes: million characters of training text; the held-out text comes on top.
    """
    train: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for name, text in sorted(_documents(), key=lambda document: _digest(document[0])):
        if sum(map(len, train.values())) >= megabytes * 1e6:
            break
        part = held_out if _digest(name) % HELD_OUT_EVERY == 0 else train
        part[name] = text
    return Corpus(train, held_out)


def _digest(name: str) -> int:
    """A number that mixes files of all kinds and does not change when others are added."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _documents() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    yield from _topics(library / "pydoc_data" / "topics.py")
    for folder in FOLDERS:
        for path in sorted((library / folder).glob("*.py")):
            if not path.name.startswith(SKIPPED):
                yield path.relative_to(library).as_posix(), path.read_text(encoding="utf-8")


def _topics(path: Path) -> list[tuple[str, str]]:
    """The help texts of the language, read without running the file; none where they lack."""
    if not path.is_file():
        return []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            topics = ast.literal_eval(node.value)
            return [(f"topics/{name}", text) for name, text in topics.items()]
    return []
