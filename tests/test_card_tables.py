"""The page that maps the cards of others: its scripts run, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from readmes import ROOT, run_all
from test_readme import SMALLER, SMALLER_LLAMA, write_checkpoint, write_llamas
from test_readme_chinese import SMALLER_BAICHUAN2, write_baichuan2

PAGE = ROOT / "docs/cards.md"
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
FEATURES = 72


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def words(file: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(file: Path) -> set[str]:
    return {anchor(title) for title in re.findall(r"^#+ (.+)$", words(file), re.MULTILINE)}


def test_links_lead_somewhere():
    found = LINK.findall(words(PAGE))
    assert len(found) > 100
    wrong = []
    for path, heading in found:
        target = (PAGE.parent / path).resolve() if path else PAGE
        if not target.exists() or (heading and heading not in anchors(target)):
            wrong.append(f"{path}#{heading}")
    assert not wrong


def test_every_feature_has_a_place():
    text = PAGE.read_text(encoding="utf-8").partition("## Features")[2]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, FEATURES + 1))
    assert all(feature.strip() and place.strip() for _, feature, place in rows)


@pytest.mark.slow
@pytest.mark.distributed
def test_scripts(folder):
    write_checkpoint(folder)
    write_llamas(folder)
    write_baichuan2(folder)
    smaller = [
        (r'MindFormerConfig\("(baichuan2_7b_lora)"\)', r'MindFormerConfig("tiny_\1.yaml")'),
        (r"max_length=64", "max_length=40"),
    ]
    run_all(PAGE, folder, [*smaller, *SMALLER, *SMALLER_LLAMA, *SMALLER_BAICHUAN2])
