"""ADGENMetric against scores that rouge_chinese, jieba and nltk gave (adgen_vectors.json)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from lm_core.metrics.adgen import NAMES, score
from lm_core.metrics.bleu import bleu
from lm_core.metrics.means import Means
from lm_core.metrics.rouge import rouge_l, rouge_n

VECTORS = json.loads(Path(__file__).with_name("adgen_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_recorded_scores(vector):
    found = score(vector["prediction"], vector["reference"])
    assert found == {name: vector[name] for name in NAMES}


def test_the_vectors_hold_short_texts_and_all_kinds_of_scores():
    lengths = {len(vector["prediction"]) for vector in VECTORS}
    assert {0, 1, 2, 3} <= lengths and max(lengths) > 60
    for name in NAMES:
        values = {vector[name] for vector in VECTORS}
        assert len([value for value in values if 0 < value < 100]) >= 8, name


def test_the_longest_common_sequence_by_trying_all(n=200):
    draw = random.Random(0)

    def subsequences(text):
        return {tuple(w for w, bit in zip(text, f"{k:06b}", strict=False) if bit == "1")
                for k in range(64)}  # fmt: skip

    for _ in range(n):
        left, right = ([draw.choice("abc") for _ in range(6)] for _ in range(2))
        common = max(map(len, subsequences(left) & subsequences(right)))
        assert rouge_l(left, right) == pytest.approx(common / 6, abs=1e-7)


def test_equal_texts_and_texts_without_anything_in_common():
    text = list("abcdefg")
    assert bleu(text, text) == pytest.approx(1)
    assert rouge_n(text, text, 2) == rouge_l(text, text) == pytest.approx(1)
    assert bleu(text, list("xyz")) == rouge_n(text, list("xyz"), 1) == 0
    assert bleu(list("abcd"), list("abcdefgh")) == pytest.approx(math.exp(-1))
    assert rouge_n([], text, 1) == rouge_l(text, []) == rouge_n(["a"], ["a"], 2) == 0


def test_every_text_counts_once_and_an_empty_one_is_0():
    scores = Means(NAMES)
    for number, (prediction, reference) in enumerate([("好的呀啊", "好的呀啊"), (" \n", "好")]):
        scores.update(number, score(prediction, reference))
    alone = score("好的呀啊", "好的呀啊")
    assert scores.result() == {name: alone[name] / 2 for name in NAMES}
    scores.update(1, alone)
    assert scores.result() == alone


def test_means_do_not_depend_on_the_order():
    rows = [(n, score(v["prediction"], v["reference"])) for n, v in enumerate(VECTORS)]
    found = []
    for seed in range(3):
        scores = Means(NAMES)
        for row in random.Random(seed).sample(rows, len(rows)):
            scores.update(*row)
        found.append(scores.result())
    assert found[0] == found[1] == found[2]
