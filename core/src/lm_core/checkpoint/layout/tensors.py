"""Named arrays that are read one at a time, and the types that NumPy lacks.

NumPy has no bfloat16 and no 8-bit floats. Their bits travel in structured types of one field, which
say what they are, survive every rearrangement, and are written back byte for byte; `cast` gives
their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from lm_core.errors import CheckpointError

Shape = tuple[int, ...]

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
FLOAT8_E4M3 = np.dtype([("float8_e4m3", "u1")])
FLOAT8_E5M2 = np.dtype([("float8_e5m2", "u1")])
FLOATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": BFLOAT16}
"""Types that weights can be cast to, by the names of `param_init_type`."""

_PIECE = 1 << 20


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: Shape
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in a file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Tensors(Protocol):
    """Named arrays, read one at a time.

    Attributes:
        where: the file or directory, for messages.
        specs: shape and type by name, in the order in which reading is cheapest.
        metadata: notes of whoever wrote the file.
    """

    @property
    def where(self) -> str: ...
    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str) -> np.ndarray:
        """The array, which the caller may keep but not change."""
        ...


class Memory:
    """Arrays that are in memory already."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        where: str = "memory",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.where = where
        self.specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
        self.metadata = dict(metadata or {})
        self._arrays = arrays

    def read(self, name: str) -> np.ndarray:
        """The array itself."""
        return self._arrays[name]


class Cast:
    """Another one's tensors with its floating-point types changed; integers stay.

    Args:
        source: what is cast.
        dtype: "float32", "float16" or "bfloat16".
    """

    def __init__(self, source: Tensors, dtype: str) -> None:
        if dtype not in FLOATS:
            raise CheckpointError(
                f"dtype: {dtype!r} is not a type that weights can have; use {', '.join(FLOATS)}"
            )
        self.where = source.where
        self.metadata = source.metadata
        self._source = source
        self._dtype = FLOATS[dtype]
        self.specs = {
            name: TensorSpec(spec.shape, self._dtype if is_float(spec.dtype) else spec.dtype)
            for name, spec in source.specs.items()
        }

    def read(self, name: str) -> np.ndarray:
        """The cast array."""
        return cast(self._source.read(name), self.specs[name].dtype)


def stream(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays in the order of `specs`, one at a time."""
    for name in tensors.specs:
        yield name, tensors.read(name)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same, NaNs included."""
    bits = f"u{a.dtype.itemsize}"
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(np.array_equal(a.view(bits), b.view(bits)))
    )


def total_bytes(tensors: Tensors) -> int:
    """Size of all tensors in a file."""
    return sum(spec.nbytes for spec in tensors.specs.values())


def is_float(dtype: np.dtype) -> bool:
    """True for floating-point types, NumPy's and the carriers of this module."""
    return dtype.kind == "f" or dtype in (BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2)


def dtype_name(dtype: np.dtype) -> str:
    """The name that users write, such as "bfloat16"."""
    return dtype.names[0] if dtype.names else dtype.name


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another type, rounded to nearest even; the array itself if the type is right.

    Raises:
        CheckpointError: 8-bit floats, whose scales a plain cast does not know; or float16 that
            would overflow.
    """
    if array.dtype == dtype:
        return array
    if array.dtype in (FLOAT8_E4M3, FLOAT8_E5M2) or dtype in (FLOAT8_E4M3, FLOAT8_E5M2):
        raise CheckpointError(
            "dtype: 8-bit floats cannot be cast without their scales; "
            "use a checkpoint in bfloat16 or float32"
        )
    values = _widened(array) if array.dtype == BFLOAT16 else array
    if dtype == BFLOAT16:
        return _bfloat16(values.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):
        result = values.astype(dtype, copy=False)
    if dtype == np.float16 and np.isinf(result).sum() > np.isinf(values).sum():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise CheckpointError(
            f"dtype: values up to {largest:.3g} do not fit float16 (at most 65504); "
            f"use bfloat16 or float32"
        )
    return result


def _widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    bits = array.reshape(-1)["bfloat16"].astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32).reshape(array.shape)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, in pieces because rounding needs scratch space."""
    flat = values.reshape(-1)
    out = np.empty(flat.size, "<u2")
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        out[piece] = _rounded(flat[piece].view(np.uint32))
    return out.view(BFLOAT16).reshape(values.shape)


def _rounded(bits: np.ndarray) -> np.ndarray:
    # Round to nearest, ties to even: add half of the last kept place, less one when that is 0.
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # A NaN must not be rounded to infinity: keep its upper bits and make it quiet.
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(bits.view(np.float32)), quiet, rounded)
