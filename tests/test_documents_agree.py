"""Documents in two languages say the same, links lead somewhere, and quoted messages exist.

What the Chinese documents share with the English ones, blocks of code above all, is run there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from documents import FENCE, blocks
from sources import PACKAGES, ROOT, all_sources, parse

ENGLISH = [
    ROOT / "README.md",
    ROOT / "core" / "README.md",
    *(package / "README.md" for package in PACKAGES),
    ROOT / "docs" / "hardware.md",
]
"""Where users start."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")


def chinese(path: Path) -> Path:
    return path.with_suffix(".zh.md")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> list[str]:
    """The lines outside of fenced blocks."""
    lines, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            lines.append(line)
    return lines


@dataclass(frozen=True)
class Section:
    """A heading and the lines up to the next one."""

    level: int
    title: str
    lines: tuple[str, ...]

    @property
    def spans(self) -> set[str]:
        """What is set as code, however its lines are broken."""
        return set(CODE.findall(" ".join(line.strip() for line in self.lines)))

    @property
    def rows(self) -> list[tuple[int, list[str]]]:
        """Of each row of a table how many cells it has, and what is code in the first one."""
        table = [line for line in self.lines if line.startswith("|")]
        cells = [re.split(r"(?<!\\)\|", CODE.sub("`", line)) for line in table]
        first = [CODE.findall(line.partition(" | ")[0]) for line in table]
        return [(len(row), code) for row, code in zip(cells, first, strict=True)]

    @property
    def samples(self) -> list[str]:
        """Indented lines: what is shown on a terminal."""
        return [line for line in self.lines if line.startswith("    ")]

    @property
    def anchor(self) -> str:
        """What GitHub makes of the heading."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def sections(path: Path) -> list[Section]:
    found: list[tuple[int, str, list[str]]] = []
    for line in prose(path):
        if heading := re.match(r"(#+) (.+)", line):
            found.append((len(heading[1]), heading[2], []))
        else:
            found[-1][2].append(line)
    return [Section(level, title, tuple(lines)) for level, title, lines in found]


@pytest.mark.parametrize("english", ENGLISH, ids=name)
class TestPairs:
    def test_each_names_the_other_below_its_title(self, english: Path):
        other = chinese(english)
        assert prose(english)[1:3] == ["", f"English | [中文]({other.name})"]
        assert prose(other)[1:3] == ["", f"[English]({english.name}) | 中文"]

    def test_blocks_are_the_same_in_the_same_order(self, english: Path):
        ours, theirs = (
            [(block.language, block.text, block.skip) for block in blocks(path)]
            for path in (english, chinese(english))
        )
        assert ours
        assert ours == theirs

    def test_headings_tables_and_samples_are_alike(self, english: Path):
        for ours, theirs in zip(sections(english), sections(chinese(english)), strict=True):
            assert ours.level == theirs.level
            assert ours.rows == theirs.rows, ours.title
            assert ours.samples == theirs.samples, ours.title

    def test_sections_speak_of_the_same_flags_keys_and_files(self, english: Path):
        for ours, theirs in zip(sections(english), sections(chinese(english)), strict=True):
            assert ours.spans == theirs.spans, ours.title

    def test_numbers_of_planned_tables_are_the_same(self, english: Path):
        """A table whose rows begin with a name and hold no words is the same in both."""
        ours, theirs = (
            [line for line in prose(path) if re.match(r"\| `\w+` \| [\d,]+ \|", line)]
            for path in (english, chinese(english))
        )
        assert ours == theirs


DOCUMENTS = sorted(
    path
    for place in ("", "core", "docs", "packages/*")
    for path in ROOT.glob(f"{place}/*.md".strip("/"))
)


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(section.anchor for section in sections(path))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path):
    wrong = []
    for link in LINK.findall("\n".join(prose(document))):
        place, _, anchor = link.partition("#")
        if place.startswith(("https:", "http:")):
            continue
        path = (document.parent / place).resolve() if place else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("document", list(map(chinese, ENGLISH)), ids=name)
def test_chinese_documents_link_to_chinese_ones(document: Path):
    english = document.with_name(document.name.replace(".zh.md", ".md"))
    wrong = []
    for link in LINK.findall("\n".join(prose(document))):
        path = document.parent / link.partition("#")[0]
        if path.name.endswith(".md") and path != english and chinese(path).exists():
            wrong.append(link)
    assert not wrong


def texts() -> Iterator[str]:
    """Every string of the sources, with a mark for each value that is put in."""
    for file in all_sources():
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "\0"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_table_exist():
    section = next(one for one in sections(ROOT / "README.md") if one.title == "Troubleshooting")
    messages = [CODE.findall(line)[0] for line in section.lines if line.startswith("| `")]
    assert len(messages) >= 15
    known = list(texts())
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, text, re.DOTALL) for text in known), message
