"""A published run: the parts of its ranks, its strategy file, and tables in NumPy's files.

Nothing is moved and nothing is written beside them. Tensors are joined one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lm_core.checkpoint import io, recut
from lm_core.checkpoint.layout.release import Slices
from lm_core.checkpoint.layout.tensors import Tensors, TensorSpec, cast, dtype_name
from lm_core.checkpoint.transform import Transformed
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy


@dataclass(frozen=True)
class Places:
    """Where a release lies.

    Attributes:
        strategy: the file that says how the parts are cut.
        parts: the folder of the parts.
        arrays: the folder of the .npy files; any two of the three may be the same.
    """

    strategy: Path
    parts: Path
    arrays: Path

    def holds(self, path: Path, slices: Slices) -> bool:
        """Whether a path is one of the release's own files."""
        own = [self.strategy, *numbered(self.parts, slices.files).values()]
        own += [file for end in slices.arrays for file in _endings(self.arrays, end)]
        return path.resolve() in {file.resolve() for file in own}


def open_release(places: Places, slices: Slices) -> Tensors:
    """The whole tensors under the release's names.

    Raises:
        CheckpointError: a file is missing, damaged or of another release.
    """
    arrays = _Arrays(places.arrays, slices.arrays)
    cut = strategy.read(places.strategy)
    files = _parts(places.parts, slices, cut)
    joined = Transformed(partial(_open, files, slices), cut, strategy.WHOLE, 0)
    both: list[Tensors] = [arrays, joined]
    return io.Joined(str(places.parts), [(one, one.specs.keys()) for one in both])


def numbered(folder: Path, name: str) -> dict[int, Path]:
    """The parts in a folder by their ranks; `name` as in `Slices.files`."""
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"(0|[1-9]\d*)"))
    matches = ((pattern.fullmatch(path.name), path) for path in _files(folder))
    return {int(match[1]): path for match, path in matches if match}


class _Arrays:
    """Tables in .npy files as `Tensors`, in float32 if they have more."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self.where = str(folder)
        self.metadata: Mapping[str, str] = {}
        self._files = _find_arrays(folder, names)
        self.specs = {name: self._spec(file) for name, file in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        array = np.load(self._files[name], allow_pickle=False)
        return cast(array, self.specs[name].dtype)

    def _spec(self, file: Path) -> TensorSpec:
        try:
            # Mapped: the header is read, and the length of the file is held against it.
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as an array of NumPy ({error}); must be as it was "
                f"published; use another copy"
            ) from error
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise CheckpointError(
                f"{file}: holds {dtype_name(array.dtype)}; must hold floating-point numbers; use "
                f"the file of the release"
            )
        dtype = np.dtype(np.float16 if array.dtype == np.float16 else np.float32)
        return TensorSpec(array.shape, dtype)


def _open(files: Mapping[int, Path], slices: Slices, rank: int) -> Tensors:
    """What is read of a part."""
    part = io.open_file(files[rank])
    return io.Joined(part.where, [(part, {name for name in part.specs if not slices.skips(name)})])


def _parts(folder: Path, slices: Slices, cut: strategy.Strategy) -> dict[int, Path]:
    """The files of all ranks, and of no others."""
    found = numbered(folder, slices.files)
    if not found:
        raise CheckpointError(
            f"{folder}: holds no {slices.files.format(0)}; the parts of all {cut.world_size} ranks "
            f"of {cut.where} must be there; unpack the archives of the release into it"
        )
    recut.require_ranks(found, cut, folder)
    if len(found) > cut.world_size:
        raise CheckpointError(
            f"{folder}: holds the parts of {len(found)} ranks and {cut.where} is about "
            f"{cut.world_size}; both must be of one release; use the strategy file of this one"
        )
    return found


def _find_arrays(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Tensor -> file, each of which is there once."""
    files, problems = {}, []
    for end, name in names.items():
        found = _endings(folder, end)
        if len(found) == 1:
            files[name] = found[0]
            continue
        there = ", ".join(file.name for file in found) or "no such file"
        problems.append(
            f"{folder}: holds {there}; must hold one whose name ends in {end}; put that of this "
            f"release alone there"
        )
    if problems:
        raise CheckpointError(*problems)
    return files


def _endings(folder: Path, end: str) -> list[Path]:
    """The files whose names end in some words: `13B_word_embedding.npy`."""
    pattern = re.compile(rf"([^.].*)?(?<![A-Za-z0-9]){re.escape(end)}")
    return [path for path in _files(folder) if pattern.fullmatch(path.name)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())
