"""Dropout whose mask is a pure function of (seed, step, site, position).

MindSpore's own dropout keeps a hidden counter that can be neither saved nor set, so a resumed run would draw other masks
than one that never stopped. Here an integer hash of the element's position gives the mask: nothing to save but two
integers, and the same mask however the model is split.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

# Odd constants of the 32-bit finaliser of MurmurHash3 (Appleby, public domain) and of the golden ratio, as signed int32.
_GOLDEN = -1640531535
_MIX1 = -2048144789
_MIX2 = -1028477387


def _shift_xor(h: Tensor, bits: int) -> Tensor:
    """H ^ (h >>> bits) on int32: RightShift copies the sign bit, so it is masked away."""
    low = Tensor(np.array((1 << (32 - bits)) - 1, np.int32))
    moved = ops.BitwiseAnd()(ops.RightShift()(h, Tensor(np.array(bits, np.int32))), low)
    return ops.BitwiseXor()(h, moved)


class Dropout(nn.Cell):
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
        rate: probability of a zero; 0 makes this an identity with no cost.
        site: a number of its own for every Dropout of a model, the same in every layout.
    """

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout: {rate} is not a probability below 1")
        self.rate = rate
        self.site = site
        self.scale = 1.0 / (1.0 - rate)
        # Keep where the hash, uniform over int32, is at least the rate-quantile.
        self.threshold = int(rate * 2**32) - 2**31

    def construct(self, x: Tensor, key: Tensor) -> Tensor:
        """x: any shape [..., M]; key: int32 scalar of this step. Returns the shape of x."""
        if self.rate == 0.0 or not self.training:
            return x
        columns = x.shape[-1]
        rows = x.size // columns
        row = ops.range(0, rows, 1).astype("int32") * _GOLDEN + (key + self.site * _MIX2)
        row = _shift_xor(row, 16) * _MIX1
        row = _shift_xor(row, 13) * _MIX2
        column = ops.range(0, columns, 1).astype("int32") * _MIX2
        column = _shift_xor(column, 15) * _GOLDEN
        h = ops.BitwiseXor()(row.reshape((rows, 1)), column.reshape((1, columns))) * _MIX1
        h = _shift_xor(h, 15) * _MIX2
        keep = ops.GreaterEqual()(h, self.threshold)
        return (x.reshape((rows, columns)) * (keep.astype(x.dtype) * self.scale)).reshape(x.shape)
