"""How many words, pairs of words and words in order two texts have in common (Lin 2004).

The numbers are those of the package rouge_chinese, which published results of Chinese models are
measured with: pairs and words are counted once, and the F score has 1e-8 in its denominator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Where rouge_chinese breaks lines: after the end of a sentence, but not before its closing quote.
_SENTENCES = [
    re.compile(pattern)
    for pattern in (
        r"([。！？?])([^\u201d\u2019])",
        r"(\.{6})([^\u201d\u2019])",
        r"(\u2026{2})([^\u201d\u2019])",
        r"([。！？?][\u201d\u2019])([^，。！？?])",
    )
]


def words(text: str) -> list[str]:
    """The words of a text in which blanks stand between them.

    A line (or a sentence) of nothing but blanks is one empty word, as in rouge_chinese.
    """
    for pattern in _SENTENCES:
        text = pattern.sub("\\1\n\\2", text)
    lines = [line for line in text.rstrip().split("\n") if line]
    return [word for line in lines for word in line.split() or [""]]


def rouge_n(found: Sequence[str], wanted: Sequence[str], n: int) -> float:
    """F score of runs of n words; 0 where there are none."""
    ours, theirs = _runs(found, n), _runs(wanted, n)
    return _f(len(ours & theirs), len(ours), len(theirs))


def rouge_l(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F score of the longest sequence of words that both have in this order; 0 without words."""
    return _f(_common(found, wanted), len(found), len(wanted))


def _runs(text: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(text[at : at + n]) for at in range(len(text) - n + 1)}


def _f(common: int, found: int, wanted: int) -> float:
    precision = common / found if found else 0.0
    recall = common / wanted if wanted else 0.0
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row of the table."""
    row = [0] * (len(right) + 1)
    for word in left:
        corner = 0
        for at, other in enumerate(right, 1):
            above = row[at]
            row[at] = corner + 1 if word == other else max(above, row[at - 1])
            corner = above
    return row[-1]
