"""Values that cross between judge and program."""

from __future__ import annotations

import io
import math
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest

from lm_core.sandbox import values

Pair = namedtuple("Pair", "a b")
Level = IntEnum("Level", "LOW HIGH")


def crossed(value):
    stream = io.BytesIO()
    values.send(stream, {"value": values.encode(value)})
    stream.seek(0)
    return values.decode(values.receive(stream)["value"])


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**53, -(2**200), 0.1, 1e308, math.inf, "", "a\n\ud800\U0001f600",
        [], [1, [2, ["3"]]], (), (1, (2,), []), {1, 2}, frozenset({(1, 2)}), deque([1, 2]),
        {}, {"a": 1, 2: [3], (4, 5): {6}, None: True}, 1 + 2j, b"\x00\xff", range(3, 30, 3),
        Fraction(10**30, 7), Decimal("1.10"),
    ],
)  # fmt: skip
def test_plain_values_stay_what_they_are(value):
    found = crossed(value)
    assert found == value and type(found) is type(value)


def test_large_numbers_cross():
    assert crossed([10**6000]) == [10**6000]


def test_types_of_lists_and_dictionaries_are_kept():
    assert crossed([(1,), [1], {1: (2,)}]) == [(1,), [1], {1: (2,)}]
    assert list(crossed(OrderedDict(b=1, a=2))) == ["b", "a"]
    assert math.isnan(crossed(math.nan))


def test_subclasses_become_their_plain_base():
    found = crossed([Counter("aab"), Pair(1, 2), Level.HIGH, type("Text", (str,), {})("x")])
    assert found == [{"a": 2, "b": 1}, (1, 2), 2, "x"]
    assert [type(item) for item in found] == [dict, tuple, int, str]


def test_iterators_and_views_give_their_items():
    assert list(crossed(n * n for n in range(3))) == [0, 1, 4]
    assert crossed({1: 2}.keys()) == [1]


def test_other_objects_equal_nothing():
    found = crossed(type("Yes", (), {"__eq__": lambda *_: True})())
    assert found != 42 and repr(found) == "<Yes object>"


@pytest.mark.parametrize(
    "data",
    [
        {}, {"eval": "1"}, {"int": "1", "list": []}, {"int": 7}, {"int": "x"}, {"dict": [1]},
        {"dict": [[[], 1]]}, {"set": [[]]}, {"range": ["a"]}, {"range": [0, 1, 0]}, {"tuple": 3},
        {"Fraction": [1, 0]}, {"Decimal": "x"}, {"bytes": "zz"}, {"complex": ["1", 2]},
    ],
)  # fmt: skip
def test_what_is_no_value_is_refused(data):
    with pytest.raises(ValueError):
        values.decode(data)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", EOFError), (b"[]\n", ValueError), (b"{\n", ValueError), (b"{}", ValueError),
        (b"\xff\n", ValueError), (b"[" * 100_000 + b"\n", ValueError),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ValueError),
    ],
)  # fmt: skip
def test_lines_that_are_no_message_are_refused(line, error):
    with pytest.raises(error):
        values.receive(io.BytesIO(line))
