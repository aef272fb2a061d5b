"""BLEU of one text against one reference (Papineni et al. 2002)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDER = 4


def bleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Geometric mean of the precisions of runs of 1 to 4 items, times the brevity penalty.

    A precision without a match is 1 / 2^k of a match, for the k-th such (NIST; method 3 of Chen and
    Cherry 2014, as in nltk); runs longer than the text count as one run without a match. Without
    one common item it is 0.
    """
    precisions, without = [], 0
    for n in range(1, ORDER + 1):
        ours, theirs = _runs(found, n), _runs(wanted, n)
        common = (ours & theirs).total()
        if not common:
            if n == 1:
                return 0.0
            without += 1
        total = max(1, ours.total())
        precisions.append(common / total if common else 1 / (2**without * total))
    mean = math.exp(math.fsum(math.log(precision) / ORDER for precision in precisions))
    short = len(found) <= len(wanted)
    return mean * (math.exp(1 - len(wanted) / len(found)) if short else 1.0)


def _runs(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))
