"""Another cut of a checkpoint in parts. MindSpore says what goes where; the bytes are moved here.

For each kind of cut MindSpore is asked once: it recuts a tiny tensor whose elements say where they
come from, one for each piece that moves as a whole. Handing it the weights themselves would need
several times the memory of a tensor, and files for all of it. So:

- A tensor is made of slices of parts, one part in memory at a time, and no weight is written before
  it has its place.
- Bits are moved and never interpreted (bfloat16 goes through float32 in MindSpore, which changes
  NaNs).
- One target rank and one pipeline stage of the source are looked at at a time, since which stage
  has a tensor is known here. Tensors that nobody cuts are copied.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout.tensors import Memory, Shape, Tensors, TensorSpec
from lm_core.errors import CheckpointError, some
from lm_core.parallel import strategy
from lm_core.parallel.strategy import Item, Strategy

Place = tuple[int, ...]
"""Of a piece: its row, its column and so on, counted in pieces."""
Moves = dict[int, list[tuple[Place, Place]]]
"""By the source's rank within its stage: where a piece lies in that part, and where it goes."""


class Transformed:
    """What one rank of the target holds, as `Tensors`, made of the parts of the source when read.

    Args:
        open_part: the tensors of a rank of the source.
        source: how they are cut.
        target: how they are to be cut.
        rank: of the target.

    Raises:
        CheckpointError: the strategies do not fit the tensors; all of them. Or a part is missing.
    """

    def __init__(
        self,
        open_part: Callable[[int], Tensors],
        source: Strategy,
        target: Strategy,
        rank: int,
    ) -> None:
        self._open = cache(open_part)
        self._source, self._target = source, target
        self._stage, self._rank = divmod(rank, target.stage_size)
        self._stages = self._find_stages()
        self._wholes = {name: self._whole(name) for name in self._stages}
        first = self._open(0)
        self.where, self.metadata = first.where, dict(first.metadata)
        self.specs = {name: self._spec(name) for name in self._stages}
        self._check()
        self._moves = cache(self._ask)

    def read(self, name: str) -> np.ndarray:
        """The tensor, a new array if anybody cuts it."""
        base = self._stages[name] * self._source.stage_size
        source, target = self._from(name), self._to(name)
        if not (source.is_cut or target.is_cut):
            return self._open(base).read(name)
        made = np.empty(*self.specs[name])
        piece = _piece(source, target, self._wholes[name])
        for rank, moves in self._moves(source, target).items():
            part = self._read_part(base + rank, name)
            for here, there in moves:
                made[_region(there, piece)] = part[_region(here, piece)]
        return made

    def needed(self) -> set[int]:
        """The ranks of the source whose parts are read."""
        found: set[int] = set()
        for name, stage in self._stages.items():
            base = stage * self._source.stage_size
            found.add(base)
            source, target = self._from(name), self._to(name)
            if source.is_cut or target.is_cut:
                found |= {base + rank for rank in self._moves(source, target)}
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
                f"{some(wrong)}; both must belong to this model; use the strategy files of the "
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

    def _ask(self, source: Item, target: Item) -> Moves:
        """What MindSpore does with tensors that are cut like this.

        The pieces of each dimension are the fewest of which parts of both kinds are whole numbers.
        """
        pieces = tuple(map(math.lcm, source.counts, target.counts))
        inside = source.local(pieces)
        outside = target.local(pieces)
        codes = self._recut(source, target, inside).reshape(outside)
        moves: Moves = {}
        for there in itertools.product(*map(range, outside)):
            rank, number = divmod(int(codes[there]), math.prod(inside))
            here = tuple(int(place) for place in np.unravel_index(number, inside))
            moves.setdefault(rank, []).append((here, there))
        return dict(sorted(moves.items()))

    def _recut(self, source: Item, target: Item, inside: Shape) -> np.ndarray:
        """A tensor that numbers its elements, part after part, recut for this rank."""
        import mindspore

        name, size = "piece", math.prod(inside)
        with tempfile.TemporaryDirectory() as folder:
            made, files = Path(folder) / "made.ckpt", {}
            cuts: list[str | None] = []
            for one, item in ((self._source, source), (self._target, target)):
                path = Path(folder) / f"{len(cuts)}.json"
                path.write_text(strategy.to_json({name: item}, 0))
                cuts.append(str(path) if one.stage_size > 1 else None)
            try:
                for rank in mindspore.rank_list_for_transform(self._rank, *cuts):
                    codes = np.arange(rank * size, (rank + 1) * size, dtype=np.int32)
                    files[rank] = str(Path(folder) / f"rank_{rank}.ckpt")
                    ckpt.write(files[rank], Memory({name: codes.reshape(inside)}))
                mindspore.transform_checkpoint_by_rank(self._rank, files, str(made), *cuts)
            except (ValueError, RuntimeError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"{self._source.where}: MindSpore cannot recut a tensor that is cut like "
                    f"{source} into {target} ({str(error).strip().splitlines()[0][:160]}); must "
                    f"be the strategy of the run that wrote these parts; use that one"
                ) from error
            return ckpt.CkptFile(made).read(name)

    def _read_part(self, rank: int, name: str) -> np.ndarray:
        """A tensor of a rank, which must be as that of the first one of the stage."""
        part, expected = self._open(rank), self._part(name)
        if part.specs.get(name) != expected:
            raise CheckpointError(
                f"{part.where}: {name} is missing or of another shape than on the other ranks; "
                f"must be one checkpoint; use another one"
            )
        return part.read(name)


def _has(one: Strategy, stage: int, name: str) -> bool:
    """Whether a stage has a tensor; all have what no strategy names."""
    return name in one.stages[stage] or one.owner(name) is None


def _piece(source: Item, target: Item, whole: Shape) -> Shape:
    """The shape of the pieces of a tensor that move as a whole."""
    counts = map(math.lcm, source.counts, target.counts)
    return tuple(size // count for size, count in zip(whole, counts, strict=True))


def _region(place: Place, piece: Shape) -> tuple[slice, ...]:
    starts = (number * size for number, size in zip(place, piece, strict=True))
    return tuple(slice(start, start + size) for start, size in zip(starts, piece, strict=True))
