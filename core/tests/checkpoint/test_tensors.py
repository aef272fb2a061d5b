"""Types that NumPy lacks, and casts."""

import numpy as np
import pytest

from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, cast, stream
from lm_core.checkpoint.layout.tensors import FLOAT8_E4M3, dtype_name, is_float
from lm_core.errors import CheckpointError

F32 = np.dtype("<f4")


def bits(*values):
    return np.array(values, "<u2").view(BFLOAT16)


def test_all_bfloat16_numbers_survive_float32():
    every = np.arange(65536, dtype=np.uint32).astype("<u2").view(BFLOAT16)
    wide = cast(every, F32)
    finite = ~np.isnan(wide)
    back = cast(wide, BFLOAT16)
    assert np.array_equal(back[finite], every[finite])
    assert np.isnan(cast(back[~finite], F32)).all()
    assert wide[0x3F80] == 1.0 and wide[0xC000] == -2.0 and np.isposinf(wide[0x7F80])


def test_rounding_is_to_nearest_even():
    """Against the nearest of the two neighbours, found by brute force in float64."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    below = cast((values.view(np.uint32) >> 16).astype("<u2").view(BFLOAT16), F32).astype(
        np.float64
    )
    above = cast(((values.view(np.uint32) >> 16) + 1).astype("<u2").view(BFLOAT16), F32)
    above = above.astype(np.float64)
    got = cast(cast(values, BFLOAT16), F32).astype(np.float64)
    nearest = np.where(np.abs(values - below) < np.abs(above - values), below, above)
    tie = np.abs(values - below) == np.abs(above - values)
    assert np.array_equal(got[~tie], nearest[~tie])
    assert cast(np.float32([1 + 2**-8, 1 + 3 * 2**-8]), BFLOAT16)["bfloat16"].tolist() == [
        0x3F80,
        0x3F82,
    ]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45])
def test_special_values(value):
    got = cast(cast(np.float32([value]), BFLOAT16), F32)[0]
    assert (np.isnan(got) and np.isnan(value)) or got == np.float32(value) or abs(got) < 1e-40
    assert np.signbit(got) == np.signbit(np.float32(value))


def test_a_nan_with_only_low_bits_stays_one():
    nan = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(cast(cast(nan, BFLOAT16), F32)).all()


def test_scalars_and_views_keep_their_shape():
    for array in (np.float32(1.5), np.ones((2, 3), np.float32).T, np.ones((0, 4), np.float32)):
        array = np.asarray(array)
        assert cast(array, BFLOAT16).shape == array.shape
        assert cast(cast(array, BFLOAT16), F32).shape == array.shape


def test_carriers_survive_rearrangement():
    x = np.arange(12, dtype="<u2").view(BFLOAT16).reshape(3, 4)
    joined = np.concatenate([x.T, x.T[:2]])
    assert joined.dtype == BFLOAT16
    assert joined["bfloat16"][0].tolist() == [0, 4, 8]


def test_an_array_of_the_right_type_is_not_copied():
    x = np.ones(3, np.float32)
    assert cast(x, F32) is x


def test_float16_that_would_overflow_is_refused():
    with pytest.raises(CheckpointError, match=r"7e\+04 do not fit float16 .*use bfloat16"):
        cast(np.float32([1.0, 7e4]), np.dtype("<f2"))
    assert np.isinf(cast(np.float32([np.inf]), np.dtype("<f2")))[0]


def test_float8_is_refused():
    with pytest.raises(CheckpointError, match="without their scales"):
        cast(np.zeros(2, FLOAT8_E4M3), F32)


def test_cast_of_tensors_leaves_integers():
    source = Memory({"a": np.ones(3, np.float32), "n": np.arange(3), "b": bits(1, 2)})
    out = dict(stream(Cast(source, "float16")))
    assert [out[k].dtype for k in "anb"] == [np.float16, np.int64, np.float16]
    with pytest.raises(CheckpointError, match="'int8' is not a type"):
        Cast(source, "int8")


def test_names():
    assert dtype_name(BFLOAT16) == "bfloat16" and dtype_name(F32) == "float32"
    assert is_float(BFLOAT16) and is_float(FLOAT8_E4M3) and not is_float(np.dtype("u2"))
