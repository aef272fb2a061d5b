"""The comparison of weights that all tests use finds every kind of difference and says which."""

import numpy as np
import pytest

from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory
from lm_core.testing.parity import assert_same, differences


def arrays(**changes):
    made = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int32)}
    return made | changes


def test_same_in_any_order_and_place():
    assert_same(arrays(), Memory(dict(reversed(arrays().items()))))
    nan = arrays(a=np.full(3, np.nan, np.float32))
    assert_same(nan, arrays(a=np.full(3, np.nan, np.float32)))
    assert_same(arrays(a=np.asfortranarray(arrays()["a"])), arrays())
    assert_same(Cast(Memory(arrays()), "bfloat16"), Cast(Memory(arrays()), "bfloat16"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"c": np.zeros(1)}, "c: is there; must not be"),
        ({"a": np.zeros((3, 2), np.float32)}, "a: is float32 [3, 2]; must be float32 [2, 3]"),
        ({"b": np.zeros((), np.float32)}, "b: is float32 []; must be int32 []"),
        ({"b": np.ones((), np.int32)},
         "b: 1 of 1 numbers differ, the first at []: is 1; must be 0"),
        ({"a": np.array([[0, 1, 2], [3, -4, -5]], np.float32)},
         "a: 2 of 6 numbers differ, the first at [1, 1]: is -4.0; must be 4.0"),
    ],
)  # fmt: skip
def test_each_difference_is_a_line(changes, line):
    assert differences(arrays(**changes), arrays()) == [line]
    with pytest.raises(AssertionError) as caught:
        assert_same(arrays(**changes), arrays())
    assert str(caught.value).startswith(line)


def test_bits_and_not_values():
    """Both zeros are equal numbers; a missing name and a changed one are two lines."""
    negative = np.array([-0.0], np.float32)
    (line,) = differences({"a": negative}, {"a": np.zeros(1, np.float32)})
    assert line == "a: 1 of 1 numbers differ, the first at [0]: is -0.0; must be 0.0"
    assert differences({"a": negative}, {"a": np.zeros(1, np.float32), "b": negative}) == [
        "b: is missing",
        line,
    ]


def test_numbers_that_numpy_lacks():
    one, other = (np.array([bits], "<u2").view(BFLOAT16) for bits in (0x3F80, 0x3F81))
    (line,) = differences({"a": one}, {"a": other})
    assert line.startswith("a: 1 of 1 numbers differ")
