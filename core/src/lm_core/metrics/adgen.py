"""ADGENMetric: how near generated texts are to those that people wrote, in per cent."""

from __future__ import annotations

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
