"""ADGENMetric: how near generated texts are to those that people wrote, in per cent."""

from __future__ import annotations

from collections.abc import Mapping

from lm_core.metrics.bleu import bleu
from lm_core.metrics.rouge import rouge_l, rouge_n, words
from lm_core.tokenizer.words import cut

NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def score(prediction: str, reference: str) -> dict[str, float]:
    """The scores of one text, from 0 to 100 and rounded to 4 places; nothing written scores 0.

    ROUGE is measured on words, BLEU on characters.
    """
    if not prediction.strip():
        return dict.fromkeys(NAMES, 0.0)
    found, wanted = (words(" ".join(cut(text))) for text in (prediction, reference))
    values = (
        rouge_n(found, wanted, 1),
        rouge_n(found, wanted, 2),
        rouge_l(found, wanted),
        bleu(prediction, reference),
    )
    return {name: round(value * 100, 4) for name, value in zip(NAMES, values, strict=True)}


class AnswerScores:
    """Means over texts; every text counts, also one of which nothing was written.

    (MindFormers leaves those out of the mean.)
    """

    def __init__(self) -> None:
        self._found: dict[int, Mapping[str, float]] = {}

    def update(self, number: int, prediction: str, reference: str) -> None:
        """Adds the text of a number; a second one of that number replaces it."""
        self._found[number] = score(prediction, reference)

    def result(self) -> dict[str, float]:
        """The means, which do not depend on the order in which texts came."""
        rows = [self._found[number] for number in sorted(self._found)]
        return {name: sum(row[name] for row in rows) / max(len(rows), 1) for name in NAMES}
