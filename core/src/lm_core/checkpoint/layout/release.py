"""Models as their authors publish them: files cut over ranks, and what says their sizes or cut.

Each file holds a slice of every tensor, as the process that wrote it did. The slices are joined as
they are read, one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lm_core.checkpoint.layout.tensors import Shape, Tensors, TensorSpec, dtype_name
from lm_core.errors import CheckpointError

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Release:
    """What makes a directory a release.

    Attributes:
        description: the JSON file that says the sizes.
        files: how weight files begin: "consolidated" for consolidated.00.pth, consolidated.01.pth.
        axis: `axis(name, specs of one file)` is the axis along which a tensor is cut; None: all
            files have the same.
        read: `read(description, specs of whole tensors)` is the model's configuration.
        write: `write(configuration)` is the description.
    """

    description: str
    files: str
    axis: Callable[[str, Specs], int | None]
    read: Callable[[Mapping[str, Any], Specs], Any]
    write: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Slices:
    """What makes a directory the parts of a run whose strategy file was published with them.

    It does not say the model's sizes. Some tensors are whole, in NumPy's files.

    Attributes:
        files: the names of the parts; `{}` is the rank.
        arrays: how the name of a .npy file ends ("word_embedding.npy"), and the tensor that it is.
        skipped: patterns of whole names in the parts that are not read, such as those that `arrays`
            replace.
    """

    files: str
    arrays: Mapping[str, str]
    skipped: Sequence[str] = ()

    def skips(self, name: str) -> bool:
        """Whether a tensor of a part is not read."""
        return self._skipped.fullmatch(name) is not None

    @cached_property
    def _skipped(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.skipped) or r"(?!)")


class Pieces:
    """The files of a release as one `Tensors`.

    Args:
        where: the directory, for messages.
        parts: the files, in the order of their ranks.
        axis: as in `Release`.

    Raises:
        CheckpointError: they do not belong together; all tensors are named.
    """

    def __init__(
        self, where: str, parts: Sequence[Tensors], axis: Callable[[str, Specs], int | None]
    ) -> None:
        self.where = where
        self.metadata: dict[str, str] = {}
        self._parts = parts
        first = parts[0].specs
        self._axis = {name: axis(name, first) for name in first}
        self._require_alike()
        self.specs = {name: self._whole(name) for name in first}

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, a new array if it is cut.

        Raises:
            CheckpointError: the files differ in a tensor that all of them hold.
        """
        axis, arrays = self._axis[name], (part.read(name) for part in self._parts)
        if axis is not None and len(self._parts) > 1:
            return np.concatenate(list(arrays), axis)
        whole = next(arrays)
        for part, array in zip(self._parts[1:], arrays, strict=True):
            if array.tobytes() != whole.tobytes():
                raise CheckpointError(
                    f"{self.where}: {name} of {part.where} differs from that of "
                    f"{self._parts[0].where}; must be the same in all files of a model; use files "
                    f"of one download"
                )
        return whole

    def _whole(self, name: str) -> TensorSpec:
        shape, dtype = self._parts[0].specs[name]
        axis = self._axis[name]
        if axis is None:
            return TensorSpec(shape, dtype)
        length = sum(part.specs[name].shape[axis] for part in self._parts)
        return TensorSpec((*shape[:axis], length, *shape[axis + 1 :]), dtype)

    def _require_alike(self) -> None:
        problems = []
        for part in self._parts[1:]:
            first = self._parts[0].specs
            odd = sorted(first.keys() ^ part.specs.keys())
            if odd:
                problems.append(
                    f"{part.where}: has other tensors than {self._parts[0].where} "
                    f"({', '.join(odd)}); must have slices of the same; use files of one download"
                )
                continue
            problems += [
                f"{part.where}: {name} is {_shown(part.specs[name])} and that of "
                f"{self._parts[0].where} {_shown(first[name])}; must be slices of one tensor; use "
                f"files of one download"
                for name in first
                if self._outside(name, part.specs[name]) != self._outside(name, first[name])
            ]
        if problems:
            raise CheckpointError(*problems)

    def _outside(self, name: str, spec: TensorSpec) -> tuple[Shape, np.dtype]:
        """What slices of one tensor have in common."""
        axis = self._axis[name]
        shape = (-1 if place == axis else size for place, size in enumerate(spec.shape))
        return tuple(shape), spec.dtype


def _shown(spec: TensorSpec) -> str:
    return f"{dtype_name(spec.dtype)} {list(spec.shape)}"
