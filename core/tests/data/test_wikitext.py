"""Cleaning WikiText: the rules one by one, and against the regular expressions they come from."""

from __future__ import annotations

import random
import re
import time
from collections import Counter

import pytest

from lm_core.data.wikitext import clean, join, passages


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("role @-@ playing", "role-playing"),
        ("1 @,@ 024 @.@ 5", "1,024.5"),
        ("M @-@ 82 ( Michigan highway )", "M-82 (Michigan highway)"),
        ("It is , he said ; see : now . Then", "It is, he said; see: now. Then"),
        ("What ? No ! Yes .", "What? No! Yes."),
        ('a " cutter " , and " <unk> "', 'a "cutter", and "<unk>"'),
        ("[ 1 ] { x y }", "[1] {x y}"),
        ("the dogs ' tails", "the dogs' tails"),
        ("the dog 's tail", "the dog's tail"),
        ("20 \u00b0 C", "20\u00b0C"),
        ("= = = =", "===="),
        ("in N cases", "in 1 cases"),
        ("( open", "( open"),
        ("close )", "close )"),
        ("( a ( b ) c )", "(a ( b) c )"),
        ("", ""),
        ("a\tb", "a\tb"),
    ],
)
def test_rules(line, text):
    assert clean(line) == text


def brackets_by_expression(line):
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        o, c = re.escape(opening), re.escape(closing)
        line = re.sub(rf"{o}\s*([^{c}]*?)\s*{c}", rf"{opening}\1{closing}", line)
    return line


def test_brackets_are_those_of_the_regular_expressions():
    rng = random.Random(0)
    for _ in range(5000):
        line = "".join(rng.choice("ab  \t\u00a0()[]{}\"'x") for _ in range(rng.randrange(30)))
        plain = line.replace("s '", "").replace(" 's", "")
        assert clean(plain) == brackets_by_expression(plain).replace(" 's", "'s"), repr(plain)


@pytest.mark.parametrize("line", ["(" * 500_000, '" ' * 500_001, "( " + " " * 500_000, "'" * 10**6])
def test_odd_lines_take_linear_time(line):
    start = time.perf_counter()
    clean(line)
    assert time.perf_counter() - start < 20


LINES = """
 = One =

 first paragraph .
 second paragraph .

 = = Two = =
 = = = Three = = =

 third\tafter a tab .
 = a formula and = not a heading
 = Last =
 the last paragraph
""".splitlines(keepends=True)


def test_passages_end_at_headings_and_the_last_is_kept():
    counts = Counter()
    assert list(passages(LINES, counts)) == [
        ["first paragraph .", "second paragraph ."],
        ["third\tafter a tab .", "= a formula and = not a heading"],
        ["the last paragraph"],
    ]
    assert counts == {"lines read": 13, "blank lines left out": 4, "headings left out": 4}
    text = sum(1 for line in LINES if line.strip() and not line.strip().endswith("="))
    assert counts["lines read"] == text + 4 + 4


@pytest.mark.parametrize("lines", [[], ["\n"], [" = A =\n"], ["=\n", "\n", "= =\n"]])
def test_files_without_text(lines):
    assert list(passages(lines, Counter())) == []


def test_a_file_without_headings():
    assert list(passages(["a\n", "b"], Counter())) == [["a", "b"]]
    assert join(["a .", "b , c"]) == "a. b, c"
