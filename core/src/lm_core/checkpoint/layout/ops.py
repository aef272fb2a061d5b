"""Reversible operations between their arrays and ours. They know nothing of files or names.

A number in an operation may be a function of the model configuration: `Split(lambda c:
[c.hidden_size, c.kv_size, c.kv_size])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Arrays = list[np.ndarray]
Number = int | Callable[[Any], int]
Sizes = int | Sequence[int] | Callable[[Any], int | Sequence[int]]


class Op(Protocol):
    """One reversible step."""

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """From theirs to ours."""
        ...

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """From ours to theirs."""
        ...


def _value(number: Any, config: Any) -> Any:
    return number(config) if callable(number) else number


@dataclass(frozen=True)
class Transpose:
    """Reverses the axes, [out, in] <-> [in, out]; vectors stay as they are.

    Attributes:
        when: the configurations for which it does so; None: all.
    """

    when: Callable[[Any], bool] | None = None

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """A view of each array."""
        if self.when is not None and not self.when(config):
            return arrays
        return [array.T for array in arrays]

    save = load


@dataclass(frozen=True)
class Split:
    """Theirs is one array, ours are several: consecutive parts along an axis.

    Attributes:
        sizes: the number of equal parts, or the length of each part ([4096, 256, 256] for grouped
            attention).
        axis: counted in their array.
    """

    sizes: Sizes
    axis: int = 0

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Views of the one array."""
        (whole,) = arrays
        sizes = _value(self.sizes, config)
        length = whole.shape[self.axis]
        if isinstance(sizes, int):
            sizes = [length // sizes] * sizes
        if sum(sizes) != length:
            raise ValueError(
                f"parts of {list(sizes)} do not fill axis {self.axis} of {list(whole.shape)}"
            )
        return np.split(whole, np.cumsum(sizes)[:-1], self.axis)

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """One new array."""
        return [np.concatenate(arrays, self.axis)]


@dataclass(frozen=True)
class SplitHeads:
    """Theirs is head by head, q0 k0 v0 q1 k1 v1 ...; ours part by part, q0 q1 ... k0 k1 ... v0 ...

    Attributes:
        parts: how many each head has.
        head_dim: rows of one part.
        when: the configurations for which it does so; None: all.
    """

    parts: int
    head_dim: Number
    when: Callable[[Any], bool] | None = None

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Heads to parts."""
        return self._swapped(arrays, config, (-1, self.parts))

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Parts to heads."""
        return self._swapped(arrays, config, (self.parts, -1))

    def _swapped(self, arrays: Arrays, config: Any, axes: tuple[int, int]) -> Arrays:
        if self.when is not None and not self.when(config):
            return arrays
        rows = _value(self.head_dim, config)
        for array in arrays:
            if array.shape[0] % (self.parts * rows):
                raise ValueError(
                    f"axis 0 of {list(array.shape)} does not hold whole heads of {self.parts} "
                    f"parts of {rows}"
                )
        return [
            array.reshape((*axes, rows, *array.shape[1:])).swapaxes(0, 1).reshape(array.shape)
            for array in arrays
        ]


@dataclass(frozen=True)
class Concat:
    """Theirs are several arrays, ours is one: `Split` the other way round, with its attributes."""

    sizes: Sizes
    axis: int = 0

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """One new array."""
        return Split(self.sizes, self.axis).save(arrays, config)

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Views of the one array."""
        return Split(self.sizes, self.axis).load(arrays, config)


@dataclass(frozen=True)
class Reshape:
    """Other axes over the same numbers; one size of each side may be -1."""

    ours: Sizes
    theirs: Sizes

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Each array with the shape `ours`."""
        return [array.reshape(_value(self.ours, config)) for array in arrays]

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Each array with the shape `theirs`."""
        return [array.reshape(_value(self.theirs, config)) for array in arrays]


@dataclass(frozen=True)
class PermuteRope:
    """Rotary rows in pairs x0 x1, x2 x3 (Meta, GLM2) <-> in halves x0 x2 ... x1 x3 (ours, HF).

    Works on weights and biases of queries and keys; each head is permuted alike, so the number of
    heads does not matter.

    Attributes:
        head_dim: rows of one head.
        rotary_dim: the first rows of each head that rotate; all of them if None.
        axis: the axis that holds heads x head_dim.
    """

    head_dim: Number
    rotary_dim: Number | None = None
    axis: int = 0

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Pairs to halves."""
        return [self._permute(array, self._order(config)) for array in arrays]

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Halves to pairs."""
        return [self._permute(array, np.argsort(self._order(config))) for array in arrays]

    def _order(self, config: Any) -> np.ndarray:
        head = np.arange(_value(self.head_dim, config))
        rotary = len(head) if self.rotary_dim is None else _value(self.rotary_dim, config)
        return np.concatenate([head[:rotary:2], head[1:rotary:2], head[rotary:]])

    def _permute(self, array: np.ndarray, order: np.ndarray) -> np.ndarray:
        length = array.shape[self.axis]
        if length % len(order):
            raise ValueError(
                f"axis {self.axis} of {list(array.shape)} does not hold whole heads of {len(order)}"
            )
        starts = np.arange(0, length, len(order))
        return np.take(array, (starts[:, None] + order).reshape(-1), self.axis)


class Each:
    """An operation of its own for each array: `Each(PermuteRope(64), PermuteRope(64), None)`."""

    def __init__(self, *ops: Op | None) -> None:
        self.ops = ops

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Applies each operation to its array."""
        return [
            a if op is None else op.load([a], config)[0]
            for op, a in zip(self.ops, arrays, strict=True)
        ]

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Applies each reverse to its array."""
        return [
            a if op is None else op.save([a], config)[0]
            for op, a in zip(self.ops, arrays, strict=True)
        ]


@dataclass(frozen=True)
class Tie:
    """Theirs repeats another parameter where the configuration ties the two.

    That is so where the row's own parameter does not exist.
    A repeated tensor may be absent; if present it must be equal. Where nothing is tied, the row is
    an ordinary one.

    Attributes:
        to: our name of the other parameter, which is made of a single tensor of theirs.
        write: repeat the tensor when writing.
    """

    to: str
    write: bool = False

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Nothing: not tied."""
        return arrays

    save = load
