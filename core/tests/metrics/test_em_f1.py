"""EmF1Metric: pairs that were worked out by hand, and the rules again in a simple form."""

from __future__ import annotations

import random

import pytest

from lm_core.metrics.em_f1 import NAMES, longest_run, plain, score, segments
from lm_core.tokenizer.words import cut

MARKS = [*"-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"]

PAIRS = [
    # Equal.
    ("郑州市", ["郑州市"], 100, 100),
    # A full stop is dropped.
    ("郑州市。", ["郑州市"], 100, 100),
    # So are the book's marks, of the reference too: 2 of 2 characters, 2 of 2.
    ("《论语》", ["论语"], 100, 100),
    ("论语", ["《论语》。"], 100, 100),
    # 郑州 is common: P = 2/2, R = 2/3, F1 = 2 * 1 * 2/3 / (5/3) = 4/5.
    ("郑州", ["郑州市"], 0, 80),
    # The other way round: P = 2/3, R = 2/2.
    ("郑州市", ["郑州"], 0, 80),
    # Nothing in common.
    ("北京", ["上海"], 0, 0),
    # A character in common, whatever its place: P = 1/3, R = 1/2, F1 = 1/3 / (5/6) = 2/5.
    ("上海市", ["海上"], 0, 40),
    # A run has no gaps: 1 of 5 and 1 of 3 (not 3 of 5 and 3 of 3): 2/15 / (8/15) = 1/4.
    ("一二三四五", ["一三五"], 0, 25),
    # A number is one segment: 1950 年 of 1950 年 12 月: P = 1, R = 2/4, F1 = 2/3.
    ("1950年", ["1950年12月"], 0, 200 / 3),
    # ... and not a part of another number: 年 alone is common, P = R = 1/2.
    ("195年", ["1950年"], 0, 50),
    # Capital letters are small ones.
    ("Kris Fang", ["kris fang"], 100, 100),
    # The blank between words is a segment: 1 of 1, 1 of 3: 2/3 / (4/3) = 1/2.
    ("Kris", ["Kris Fang"], 0, 50),
    # A dropped mark leaves no gap: omega force is one word in both.
    ("ω-Force", ["ωforce"], 100, 100),
    # ... which makes covid19 of it, and that is neither covid nor 19.
    ("COVID-19", ["COVID 19"], 0, 0),
    # The first line counts, of what is left without blanks around it.
    ("\n 郑州市 \n问：开封在哪里？", ["郑州市"], 100, 100),
    ("答\n郑州市", ["郑州市"], 0, 0),
    # The best reference counts: equal to the third.
    ("村雨城", ["任天堂", "游戏", "村雨城"], 100, 100),
    # 谜之村雨城 to 村雨城: 2 * 3 / (5 + 3) = 3/4; to the ten characters: 2 * 5 / (5 + 10) = 2/3.
    ("谜之村雨城", ["村雨城", "任天堂游戏谜之村雨城"], 0, 75),
    # Marks in the middle: 关东三国志战国三杰 is common to both, 9 of 9 and 9 of 9.
    ("《关东三国志》、《战国三杰》", ["「关东三国志」战国三杰"], 100, 100),
    # Half-width marks are not in the list: 郑 州 , 开 封 against 郑 州 开 封: 2 * 2 / (5 + 4).
    ("郑州,开封", ["郑州，开封"], 0, 400 / 9),
    # Nor is one half of the ellipsis: 郑 州 and two dots: 2 * 2 / (4 + 2).
    ("郑州……", ["郑州"], 0, 200 / 3),
    # Nothing written, or marks alone, is no answer, not even to a reference of marks alone.
    ("", ["郑州"], 0, 0),
    (" \n ", ["郑州"], 0, 0),
    ("。", ["郑州"], 0, 0),
    ("。", ["《》"], 0, 0),
    ("郑州", [""], 0, 0),
]


@pytest.mark.parametrize(("prediction", "references", "em", "f1"), PAIRS)
def test_pairs_worked_out_by_hand(prediction, references, em, f1):
    assert score(prediction, references) == pytest.approx({"Em": em, "F1": f1})
    assert tuple(score(prediction, references)) == NAMES


def test_the_order_of_references_and_further_ones_that_are_worse_change_nothing():
    for prediction, references, em, f1 in PAIRS:
        more = [*reversed(references), "完全不同"]
        assert score(prediction, more) == pytest.approx({"Em": em, "F1": f1})


def test_every_mark_of_the_list_is_dropped_and_no_other():
    for mark in MARKS:
        assert plain(f"a{mark}b") == "ab" and segments(plain(f"郑{mark}州")) == ["郑", "州"]
    every = [chr(code) for code in range(0x20, 0x10000) if not 0xD800 <= code < 0xE000]
    assert {mark for mark in every if plain(f"a{mark}b") == "ab"} == {*MARKS}
    assert len({*MARKS}) == 32


def oracle_segments(text):
    """Character by character, with the words between two Chinese characters kept aside."""
    found, aside = [], ""
    for character in text.lower().strip():
        if character in MARKS:
            continue
        if "\u4e00" <= character <= "\u9fa5":
            found += [*cut(aside), character]
            aside = ""
        else:
            aside += character
    return found + cut(aside)


def oracle_run(left, right):
    """By trying all runs of the left one."""
    runs = [left[a:b] for a in range(len(left)) for b in range(a + 1, len(left) + 1)]
    inside = [r for r in runs if any(right[k : k + len(r)] == r for k in range(len(right)))]
    return max(map(len, inside), default=0)


def test_random_texts_against_the_rules_in_a_simple_form():
    draw = random.Random(3)
    letters = [*"郑州", *"郑州市" * 5, *MARKS[:3], *"，。、《》", *"aB1 2,.…\u9fa6\u3400"]
    runs = set()
    for _ in range(400):
        texts = ["".join(draw.choices(letters, k=draw.randrange(12))) for _ in range(3)]
        found, *wanted = map(oracle_segments, texts)
        f1 = 0.0
        for other in wanted:
            if run := oracle_run(found, other):
                precision, recall = run / len(found), run / len(other)
                f1 = max(f1, 2 * precision * recall / (precision + recall))
            assert longest_run(found, other) == run == longest_run(other, found)
            runs.add(run)
        assert segments(plain(texts[0])) == found
        assert score(texts[0], texts[1:])["F1"] == pytest.approx(100 * f1)
    assert runs >= {0, 1, 2, 3}


def test_longest_run_of_random_rows():
    draw = random.Random(5)
    for _ in range(300):
        left, right = (draw.choices("ab", k=draw.randrange(9)) for _ in range(2))
        assert longest_run(left, right) == oracle_run(left, right)
