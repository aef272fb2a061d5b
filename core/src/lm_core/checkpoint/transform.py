"""Another cut of a checkpoint in parts. MindSpore does all splitting, merging and recutting.

What is peculiar about how it is asked, and why:

- One target rank and one pipeline stage of the source at a time, since which stage has a tensor is
  known here. MindSpore's own way across stages needs every rank's file in memory, and for
  safetensors accepts only strategies in its own format.
- Tensors are handed over in chunks, through files that hold only what the target rank needs, so
  memory and scratch space stay small however large the model is.
- As integers of the same width: bits are moved and never interpreted. bfloat16 goes through float32
  in MindSpore, which changes NaNs.
- Tensors that nobody cuts are copied.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout.tensors import Memory, Shape, Tensors, TensorSpec
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy
from lm_core.parallel.strategy import Item, Strategy

CHUNK = 256 << 20
"""Bytes of whole tensors that MindSpore is given at once."""

_BITS = {1: np.dtype("i1"), 2: np.dtype("<i2"), 4: np.dtype("<i4"), 8: np.dtype("<i8")}


class Transformed:
    """What one rank of the target holds, as `Tensors`, made of the parts of the source when read.

    Args:
        open_part: the tensors of a rank of the source.
        source: how they are cut.
        target: how they are to be cut.
        rank: of the target.
        scratch: an existing folder for files that are gone again after each chunk.

    Raises:
        CheckpointError: the strategies do not fit the tensors; all of them. Or a part is missing.
    """

    def __init__(
        self,
        open_part: Callable[[int], Tensors],
        source: Strategy,
        target: Strategy,
        rank: int,
        scratch: Path,
    ) -> None:
        self._open = cache(open_part)
        self._source, self._target, self._scratch = source, target, scratch
        self._stage, self._rank = divmod(rank, target.stage_size)
        self._stages = self._find_stages()
        self._wholes = {name: self._whole(name) for name in self._stages}
        first = self._open(0)
        self.where, self.metadata = first.where, dict(first.metadata)
        self.specs = {name: self._spec(name) for name in self._stages}
        self._check()
        self._chunks = {
            name: chunk
            for chunk in _chunks(self._recut(), self._wholes, self._stages)
            for name in chunk
        }
        self._held: dict[str, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """The tensor; those that are made with it are kept until they have been read too."""
        if name not in self._chunks:
            return self._open(self._stages[name] * self._source.stage_size).read(name)
        if name not in self._held:
            self._held = self._make(self._chunks[name])
        array = self._held.pop(name)
        shape, dtype = self.specs[name]
        if array.shape != shape:
            raise CheckpointError(
                f"{self.where}: MindSpore made {name} {list(array.shape)}; must be {list(shape)}; "
                f"the strategies do not belong to these files"
            )
        return array.view(dtype)

    def needed(self) -> set[int]:
        """The ranks of the source whose parts are read."""
        size = self._source.stage_size
        found = {stage * size for stage in self._stages.values()}
        for stage in set(self._stages.values()):
            names = [name for name in self._recut() if self._stages[name] == stage]
            found |= {stage * size + rank for rank in self._asked(names)}
        return found

    def _find_stages(self) -> dict[str, int]:
        """Name -> stage of the source that it is taken from, for all that this rank gets."""
        found: dict[str, int] = {}
        for stage in range(len(self._source.stages)):
            for name in self._open(stage * self._source.stage_size).specs:
                if _has(self._source, stage, name) and _has(self._target, self._stage, name):
                    found.setdefault(name, stage)
        # As one rank writes it: all of one moment, then all of the next.
        return dict(sorted(found.items(), key=lambda item: strategy.kind(item[0])))

    def _item(self, strategy_: Strategy, name: str, stage: int) -> Item:
        """How a tensor is cut; whole where the strategy does not name it."""
        ranks = strategy_.stage_size
        shape = self._part(name).shape
        return strategy_.stages[stage].get(name) or Item((ranks,), (-1,) * len(shape))

    def _from(self, name: str) -> Item:
        return self._item(self._source, name, self._stages[name])

    def _to(self, name: str) -> Item:
        return self._item(self._target, name, self._stage)

    def _part(self, name: str) -> TensorSpec:
        """The part of the first rank of the stage."""
        return self._open(self._stages[name] * self._source.stage_size).specs[name]

    def _whole(self, name: str) -> Shape:
        item, shape = self._from(name), self._part(name).shape
        return item.whole(shape) if len(item.axes) == len(shape) else ()

    def _spec(self, name: str) -> TensorSpec:
        item, whole = self._to(name), self._wholes[name]
        shape = item.local(whole) if len(item.axes) == len(whole) else ()
        return TensorSpec(shape, self._part(name).dtype)

    def _check(self) -> None:
        """All names that one of the strategies cannot be about."""
        wrong = [name for name in self._stages if not self._fits(name)]
        if wrong:
            raise CheckpointError(
                f"{self.where}: {self._source.where} and {self._target.where} do not fit "
                f"{_some(wrong)}; both must belong to this model; use the strategy files of the "
                f"runs that wrote and will read these weights"
            )

    def _fits(self, name: str) -> bool:
        source, target, whole = self._from(name), self._to(name), self._wholes[name]
        if not len(source.axes) == len(target.axes) == len(self._part(name).shape):
            return False
        if target.whole(self.specs[name].shape) != whole:
            return False  # It cannot be divided like this.
        # All ranks have the same counters, and no strategy names them. Whether ranks hold the same
        # of anything larger that a strategy does not name, or parts of it, nobody knows.
        known = all(
            one.world_size == 1 or one.owner(name) is not None
            for one in (self._source, self._target)
        )
        return known or math.prod(whole) <= 1

    def _recut(self) -> list[str]:
        """The tensors that are more than copied."""
        return [name for name in self._stages if self._from(name).is_cut or self._to(name).is_cut]

    def _asked(self, names: Sequence[str]) -> list[int]:
        """The ranks of their stage that MindSpore needs for some tensors."""
        import mindspore

        if not names:
            return []
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            files = self._strategies(Path(folder), names)
            return sorted(mindspore.rank_list_for_transform(self._rank, *files))

    def _strategies(self, folder: Path, names: Iterable[str]) -> list[str | None]:
        """The strategy files of source and target for some tensors of one stage."""
        files: list[str | None] = []
        for kind, of, item in (
            ("source", self._source, self._from),
            ("target", self._target, self._to),
        ):
            path = folder / f"{kind}.json"
            path.write_text(strategy.to_json({name: item(name) for name in names}, 0))
            files.append(str(path) if of.stage_size > 1 else None)
        return files

    def _make(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some tensors of one stage, recut."""
        import mindspore

        base = self._stages[names[0]] * self._source.stage_size
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            target = Path(folder) / "made.ckpt"
            files = {
                rank: str(self._hand_over(Path(folder), base + rank, names))
                for rank in self._asked(names)
            }
            try:
                mindspore.transform_checkpoint_by_rank(
                    self._rank, files, str(target), *self._strategies(Path(folder), names)
                )
            except (ValueError, RuntimeError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"{self.where}: MindSpore cannot recut {_some(names)} "
                    f"({str(error).strip().splitlines()[0][:160]}); the strategies must belong to "
                    f"these files; use those of the run that wrote them"
                ) from error
            made = ckpt.CkptFile(target)
            return {name: made.read(name) for name in names}

    def _hand_over(self, folder: Path, rank: int, names: Sequence[str]) -> Path:
        """A file with the bits of some tensors of a rank."""
        part = self._open(rank)
        lacking = [name for name in names if part.specs.get(name) != self._part(name)]
        if lacking:
            raise CheckpointError(
                f"{part.where}: {_some(lacking)} are missing or of another shape than on the other "
                f"ranks; must be one checkpoint; use another one"
            )
        path = folder / f"rank_{rank}.ckpt"
        arrays = {name: np.ascontiguousarray(part.read(name)) for name in names}
        ckpt.write(path, Memory({name: _bits(array) for name, array in arrays.items()}))
        return path


def _has(one: Strategy, stage: int, name: str) -> bool:
    """Whether a stage has a tensor; all have what no strategy names."""
    return name in one.stages[stage] or one.owner(name) is None


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(_BITS[array.dtype.itemsize])


def _chunks(
    names: Iterable[str], wholes: Mapping[str, Shape], stages: Mapping[str, int]
) -> list[list[str]]:
    """Neighbours of one stage, a few hundred MB of them."""
    chunks: list[list[str]] = []
    room, before = 0, -1
    for name in names:
        size = 4 * math.prod(wholes[name])
        if size > room or stages[name] != before:
            chunks.append([])
            room, before = CHUNK, stages[name]
        chunks[-1].append(name)
        room -= size
    return chunks


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
