"""Dropout masks: how many, how independent, and that they follow from seed, step and site alone."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from lm_core.nn.dropout import Dropout

SHAPE = (1024, 512)


def _dropped(rate: float, site: int, key: int) -> np.ndarray:
    """bool [rows, columns]: which elements are dropped."""
    cell = Dropout(rate, site)
    cell.set_train(True)
    return (
        cell(Tensor(np.ones(SHAPE, np.float32)), Tensor(np.array([key, 0], np.int32))).asnumpy()
        == 0
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks at rate 1/2, in standard deviations of independent ones."""
    signs = (2.0 * a - 1.0) * (2.0 * b - 1.0)
    return float(signs.mean() * np.sqrt(signs.size))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_share_and_mean(rate):
    """The share is right to 4 standard deviations and 1 / 4078; the mean is kept."""
    cell = Dropout(rate, 7)
    cell.set_train(True)
    y = cell(Tensor(np.ones(SHAPE, np.float32)), Tensor(np.array([5, 0], np.int32))).asnumpy()
    spread = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * spread + 1 / 4078
    assert len(np.unique(y)) == 2
    assert y.mean() == pytest.approx(1.0, abs=5 * spread / (1 - rate))


def test_rows_and_columns_are_alike():
    """No row or column is dropped more than chance allows."""
    dropped = _dropped(0.5, 7, 5)
    for axis in (0, 1):
        count = dropped.shape[axis]
        spread = dropped.mean(axis).std() / (0.5 / np.sqrt(count))
        assert 0.85 < spread < 1.15


def test_masks_are_independent():
    """Of neighbours, of other sites and of other steps; and no four corners of a rectangle."""
    mask = _dropped(0.5, 7, 5)
    pairs = {
        "rows": (mask[1:], mask[:-1]),
        "far rows": (mask[64:], mask[:-64]),
        "columns": (mask[:, 1:], mask[:, :-1]),
        "sites": (mask, _dropped(0.5, 8, 5)),
        "steps": (mask, _dropped(0.5, 7, 6)),
        "rectangles": (mask[1:, 1:] ^ mask[:-1, 1:], ~(mask[1:, :-1] ^ mask[:-1, :-1])),
    }
    for name, (a, b) in pairs.items():
        assert abs(_correlation(a, b)) < 5, name


def test_the_same_again():
    np.testing.assert_array_equal(_dropped(0.3, 7, 5), _dropped(0.3, 7, 5))


def test_identity_outside_of_training_and_at_rate_0():
    x, key = Tensor(np.ones((3, 4), np.float32)), Tensor(np.array([1, 0], np.int32))
    assert (Dropout(0.5, 1)(x, key).asnumpy() == 1).all()
    cell = Dropout(0.0, 1)
    cell.set_train(True)
    assert (cell(x, key).asnumpy() == 1).all()


def test_the_mask_of_a_part_is_part_of_the_mask():
    """Rows are hashed by their number: fewer rows have the same masks."""
    cell = Dropout(0.5, 2)
    key = Tensor(np.array([9, 0], np.int32))
    whole, part = cell.mask(40, 16, key).asnumpy(), cell.mask(10, 16, key).asnumpy()
    np.testing.assert_array_equal(whole[:10], part)


def test_a_later_part_of_the_batch():
    """The key says where its first token stands; every token has as many rows as heads."""
    for heads in (1, 3):
        cell = Dropout(0.5, 2, heads=heads)
        whole = cell.mask(40 * heads, 16, Tensor(np.array([9, 0], np.int32))).asnumpy()
        part = cell.mask(15 * heads, 16, Tensor(np.array([9, 25], np.int32))).asnumpy()
        np.testing.assert_array_equal(whole[25 * heads :], part)


def test_heads_of_a_rank():
    """Rows are ordered by record, head, token."""
    records, heads, length, columns = 3, 4, 5, 6
    key = Tensor(np.array([9, 10], np.int32))
    whole = Dropout(0.5, 2, heads=heads).mask(records * heads * length, columns, key).asnumpy()
    whole = whole.reshape((records, heads, length, columns))
    for first, count in ((0, 2), (2, 2), (3, 1), (0, 4)):
        cell = Dropout(0.5, 2, heads=heads, own_heads=(first, count))
        part = cell.mask(records * count * length, columns, key, length).asnumpy()
        own = whole[:, first : first + count].reshape((-1, columns))
        np.testing.assert_array_equal(part, own)


def test_columns_of_a_rank():
    key = Tensor(np.array([9, 10], np.int32))
    whole = Dropout(0.5, 2).mask(20, 12, key).asnumpy()
    for first in (0, 4, 8):
        part = Dropout(0.5, 2, own_columns=(first, 12)).mask(20, 4, key).asnumpy()
        np.testing.assert_array_equal(part, whole[:, first : first + 4])


class _Gradient(nn.Cell):
    def __init__(self, cell: Dropout) -> None:
        super().__init__()
        self.grad = ms.grad(cell)

    def construct(self, x: Tensor, key: Tensor) -> Tensor:
        return self.grad(x, key)


def test_gradient_has_the_same_mask():
    cell = Dropout(0.5, 2)
    cell.set_train(True)
    x, key = Tensor(np.ones((8, 16), np.float32)), Tensor(np.array([9, 0], np.int32))
    np.testing.assert_array_equal(_Gradient(cell)(x, key).asnumpy(), cell(x, key).asnumpy())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match="is not a probability below 1"):
        Dropout(rate, 1)
