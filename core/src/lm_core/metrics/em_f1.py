"""EmF1Metric: whether an answer is one that people gave, and how much of it, in per cent.

The rules are those of the evaluation script of CMRC2018 (Cui et al. 2019), with jieba in the place
of NLTK's words, as in MindFormers: half-width commas and brackets count, and so do the blanks
between words; a mark that is dropped leaves no gap, so that "A-1" is "a1"; the ellipsis of the
script's list is two characters long, so that none is ever dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lm_core.tokenizer.words import cut

NAMES = ("Em", "F1")
_DROPPED = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHARACTER = re.compile("([一-龥])")


def score(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The scores of one answer, from 0 to 100, against the reference that it is nearest to.

    Only the first line of what was written counts; nothing written scores 0.
    """
    line = plain(prediction.strip().split("\n")[0])
    wanted = [plain(text) for text in references]
    found = segments(line)
    return {
        "Em": 100.0 * (line != "" and line in wanted),
        "F1": 100.0 * max((f1(found, segments(text)) for text in wanted), default=0.0),
    }


def plain(text: str) -> str:
    """A text in lower case, without blanks around it and without the marks that do not count."""
    return text.lower().strip().translate(_DROPPED)


def segments(text: str) -> list[str]:
    """Chinese characters one by one, and the words of what is between them."""
    found: list[str] = []
    for part in _CHARACTER.split(text):
        found += [part] if _CHARACTER.fullmatch(part) else cut(part)
    return found


def f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """2 P R / (P + R), where P and R are the shares of the longest run of segments in both."""
    common = longest_run(found, wanted)
    # With P = c / f and R = c / w this is 2 c / (f + w).
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest run without gaps that both have."""
    best, before = 0, [0] * (len(right) + 1)
    for one in left:
        ends = [0, *(before[at] + 1 if one == other else 0 for at, other in enumerate(right))]
        best, before = max(best, *ends), ends
    return best
