"""WikiText: from the tokenized articles of the published files back to ordinary text.

The files (`.tokens` with `<unk>`, `.raw` without) hold a paragraph a line, blank lines, and
headings `= Title =`, `= = Section = =`. Headings end a passage and are dropped; the paragraphs of
a passage are cleaned and joined by a space, passages by a line break.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

# In this order. " @-@ " is a hyphen inside a word, " @,@ " and " @.@ " are marks inside numbers.
_BEFORE = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" .", "."),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
_BRACKETS = ("()", "[]", "{}", '""', "''")
_AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def clean(line: str) -> str:
    """A paragraph without the spaces that the tokenization of WikiText put in."""
    for old, new in _BEFORE:
        line = line.replace(old, new)
    for opening, closing in _BRACKETS:
        line = _tighten(line, opening, closing)
    for old, new in _AFTER:
        line = line.replace(old, new)
    return line


def passages(
    lines: Iterable[str], counts: Counter[str], *, blank_ends: bool = False
) -> Iterator[list[str]]:
    """Paragraphs (stripped, not yet cleaned) of each passage; the last passage too.

    Args:
        lines: of a file.
        counts: gets what was read and what was left out.
        blank_ends: a blank line ends a passage, as a heading does.
    """
    passage: list[str] = []
    for line in lines:
        line = line.strip()
        counts["lines read"] += 1
        heading = line.startswith("=") and line.endswith("=")
        if line and not heading:
            passage.append(line)
            continue
        counts["headings left out" if heading else "blank lines left out"] += 1
        if passage and (heading or blank_ends):
            yield passage
            passage = []
    if passage:
        yield passage


def join(passage: Iterable[str]) -> str:
    """The text of a passage."""
    return " ".join(map(clean, passage)).strip()


def _tighten(line: str, opening: str, closing: str) -> str:
    """Removes white space inside brackets: from an opening one to the next closing one.

    A search by hand: the regular expression for it takes time that grows with the square of the
    line for a line of opening brackets.
    """
    parts, end = [], 0
    while (start := line.find(opening, end)) >= 0:
        stop = line.find(closing, start + 1)
        if stop < 0:
            break
        parts += line[end : start + 1], line[start + 1 : stop].strip(), closing
        end = stop + 1
    return "".join((*parts, line[end:]))
