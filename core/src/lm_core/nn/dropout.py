"""Dropout whose mask is a pure function of (seed, step, site, position).

MindSpore's own dropout keeps a hidden counter that can be neither saved nor set, so a resumed run
would draw other masks than one that never stopped. Here a hash of the element's position gives the
mask: nothing to save but a few integers, and the same mask however model and batch are split, since
the position is that in the whole batch of the step and in the whole model.

The hash is the inner product over the integers modulo a prime, a universal family (Carter and
Wegman 1979): row i and column j have K digits each, a few bits of an integer hash, and the element
is dropped where sum_k a[i, k] b[k, j] mod P falls below a threshold. The integer hash runs on K
numbers for each row and column only; what runs on every element is one thin matrix product and
float arithmetic without rounding (all numbers are integers below 2^24), because MindSpore's integer
operators are 10 times slower and keep 4 times their output's memory.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

# Odd constants of the 32-bit finaliser of MurmurHash3 (Appleby, public domain) and of the golden
# ratio, as signed int32.
_GOLDEN = -1640531535
_MIX1 = -2048144789
_MIX2 = -1028477387

_PRIME = 2039
_DIGITS = 4  # 4 products of two 11-bit digits stay below 2^24
_ROUND = 1.5 * 2**23
"""Added and taken away again, it rounds a float32 below 2^22 to the nearest integer."""


def dropout_key(state: Tensor) -> Tensor:
    """What `Dropout` takes, from (seed, step, first token of this part of the batch), int32 [3]."""
    key = state[0] * 668265263 + state[1] * 374761393
    return ops.stack((key, state[2]))


class Dropout(nn.Cell):
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
        rate: probability of a zero, kept to 1 / 2039; 0 makes this an identity with no cost.
        site: a number of its own for every Dropout of a model, the same in every layout.
        heads: rows that each token has (attention heads), over all ranks. With more than one,
            rows are ordered by record, head, token.
        own_heads: those of them that this rank holds: first and number; None: all.
        own_columns: the columns that this rank holds: first, and the number over all ranks; None:
            all.
    """

    def __init__(
        self,
        rate: float,
        site: int,
        *,
        heads: int = 1,
        own_heads: tuple[int, int] | None = None,
        own_columns: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout: {rate} is not a probability below 1")
        self.rate = rate
        self.site = site
        self.heads = heads
        self.own_heads = None if own_heads == (0, heads) else own_heads
        self.own_columns = own_columns
        dropped = min(round(rate * _PRIME), _PRIME - 1)
        self.scale = _PRIME / (_PRIME - dropped)
        # Residues are -1019 ... 1019; the lowest ones are dropped.
        self.threshold = dropped - _PRIME // 2 - 0.5
        self.product = ops.MatMul()
        self.clamp = ops.ReLU6()

    def active(self) -> bool:
        """False where this is the identity."""
        return self.rate > 0.0 and self.training

    def construct(self, x: Tensor, key: Tensor) -> Tensor:
        """x: any shape [..., M]; key: of `dropout_key`. Returns the shape of x.

        Linear in x, so applied to a gradient it is its own backward pass.
        """
        if not self.active():
            return x
        columns = x.shape[-1]
        length = x.shape[-2] if self.own_heads is not None else 1
        mask = self.mask(x.size // columns, columns, key, length)
        return x * mask.reshape(x.shape).astype(x.dtype)

    def mask(self, rows: int, columns: int, key: Tensor, length: int = 1) -> Tensor:
        """float32 [rows, columns]: 0 where an element is dropped, else the scale.

        `length` is that of a record, where this rank holds some of the heads.
        """
        first = key[1] * (self.heads * _DIGITS)
        hashed = key[0] + self.site * _MIX2
        of_rows = _digits(self.rows(rows, length) + first, hashed).reshape((rows, _DIGITS))
        of_columns = _digits(self.columns(columns), hashed + _MIX1).reshape((_DIGITS, columns))
        total = self.product(of_rows, of_columns)
        multiple = (total * (1.0 / _PRIME) + _ROUND) - _ROUND
        above = total - multiple * float(_PRIME) - self.threshold
        # At least half a unit from zero, so this is 0 or 6.
        return self.clamp(above * 12.0) * (self.scale / 6.0)

    def rows(self, count: int, length: int) -> Tensor:
        """int32 [count * K]: numbers of the digits of the rows, counted from the first token."""
        if self.own_heads is None:
            return _range(count * _DIGITS)
        first, own = self.own_heads
        inside, whole = own * length * _DIGITS, self.heads * length * _DIGITS
        records = _range(count * _DIGITS // inside).reshape((-1, 1)) * whole
        return (records + (_range(inside) + first * length * _DIGITS).reshape((1, -1))).reshape(
            (-1,)
        )

    def columns(self, count: int) -> Tensor:
        """int32 [K * count]: numbers of the digits of the columns."""
        if self.own_columns is None:
            return _range(count * _DIGITS)
        first, whole = self.own_columns
        digits = _range(_DIGITS).reshape((-1, 1)) * whole
        return (digits + (_range(count) + first).reshape((1, -1))).reshape((-1,))


def _range(count: int) -> Tensor:
    return ops.range(0, count, 1).astype(ms.int32)


def _digits(numbers: Tensor, key: Tensor) -> Tensor:
    """numbers: int32 [n]. Returns float32 [n]: integers in -1024 ... 1023."""
    h = numbers * _GOLDEN + key
    h = _shift_xor(h, 16) * _MIX1
    h = _shift_xor(h, 13) * _MIX2
    # The upper 11 bits; RightShift copies the sign bit.
    return ops.RightShift()(h, Tensor(np.array(21, np.int32))).astype(ms.float32)


def _shift_xor(h: Tensor, bits: int) -> Tensor:
    """H ^ (h >>> bits) on int32: RightShift copies the sign bit, so it is masked away."""
    low = Tensor(np.array((1 << (32 - bits)) - 1, np.int32))
    moved = ops.BitwiseAnd()(ops.RightShift()(h, Tensor(np.array(bits, np.int32))), low)
    return ops.BitwiseXor()(h, moved)
