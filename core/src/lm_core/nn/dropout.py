"""Dropout whose mask is a pure function of (seed, step, site, position).

MindSpore's own dropout keeps a hidden counter that can be neither saved nor set, so a resumed run
would draw other masks than one that never stopped. Here a hash of the element's position gives the
mask: nothing to save but two integers, and the same mask however the model is split.

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


class Dropout(nn.Cell):
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
        rate: probability of a zero, kept to 1 / 2039; 0 makes this an identity with no cost.
        site: a number of its own for every Dropout of a model, the same in every layout.
    """

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout: {rate} is not a probability below 1")
        self.rate = rate
        self.site = site
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
        """x: any shape [..., M]; key: int32 scalar of this step. Returns the shape of x.

        Linear in x, so applied to a gradient it is its own backward pass.
        """
        if not self.active():
            return x
        columns = x.shape[-1]
        mask = self.mask(x.size // columns, columns, key)
        return x * mask.reshape(x.shape).astype(x.dtype)

    def mask(self, rows: int, columns: int, key: Tensor) -> Tensor:
        """float32 [rows, columns]: 0 where an element is dropped, else the scale."""
        key = key + self.site * _MIX2
        of_rows = _digits(rows * _DIGITS, key).reshape((rows, _DIGITS))
        of_columns = _digits(columns * _DIGITS, key + _MIX1).reshape((_DIGITS, columns))
        total = self.product(of_rows, of_columns)
        multiple = (total * (1.0 / _PRIME) + _ROUND) - _ROUND
        above = total - multiple * float(_PRIME) - self.threshold
        # At least half a unit from zero, so this is 0 or 6.
        return self.clamp(above * 12.0) * (self.scale / 6.0)


def _digits(count: int, key: Tensor) -> Tensor:
    """float32 [count]: integers in -1024 ... 1023."""
    h = ops.range(0, count, 1).astype(ms.int32) * _GOLDEN + key
    h = _shift_xor(h, 16) * _MIX1
    h = _shift_xor(h, 13) * _MIX2
    # The upper 11 bits; RightShift copies the sign bit.
    return ops.RightShift()(h, Tensor(np.array(21, np.int32))).astype(ms.float32)


def _shift_xor(h: Tensor, bits: int) -> Tensor:
    """H ^ (h >>> bits) on int32: RightShift copies the sign bit, so it is masked away."""
    low = Tensor(np.array((1 << (32 - bits)) - 1, np.int32))
    moved = ops.BitwiseAnd()(ops.RightShift()(h, Tensor(np.array(bits, np.int32))), low)
    return ops.BitwiseXor()(h, moved)
