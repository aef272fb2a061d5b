"""Finding checkpoints in parts: what lies in `rank_0`, `rank_1`, ... of a folder, step by step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_core.checkpoint import atomic, io, parts, saved
from lm_core.checkpoint.layout.tensors import Tensors
from lm_core.checkpoint.parts import Layout
from lm_core.errors import CheckpointError
from lm_core.log import get_logger

_RANK = re.compile(r"rank_(\d+)")


@dataclass(frozen=True)
class Step:
    """One checkpoint of a run: the part of every rank.

    Attributes:
        folder: what holds the folders of the ranks.
        name: of the checkpoint in each of these; "" where they are checkpoints themselves.
        layout: how it is cut, as of rank 0.
        found: the ranks whose part is there.
    """

    folder: Path
    name: str
    layout: Layout
    found: tuple[int, ...]

    def directory(self, rank: int) -> Path:
        """Where a rank's part lies."""
        return self.folder / f"rank_{rank}" / self.name

    @property
    def where(self) -> str:
        """The folder and the step, for messages."""
        return str(self.folder / "rank_*" / self.name)

    @property
    def step(self) -> int:
        """The number in the name."""
        return saved.step_of(self.directory(self.found[0]))

    def missing(self, ranks: Iterable[int] | None = None) -> list[str]:
        """A line that says which parts are not there; empty if all are."""
        wanted = range(self.layout.world_size) if ranks is None else ranks
        lacking = [str(rank) for rank in sorted(wanted) if rank not in self.found]
        if not lacking:
            return []
        return [
            f"{self.where}: the part of rank {', '.join(lacking)} is missing; all "
            f"{self.layout.world_size} ranks ({self.layout}) must be there; copy the folders of "
            f"the other machines here, or use another step"
        ]

    def problems(self, ranks: Iterable[int] | None = None) -> list[str]:
        """What is missing or damaged, one line each; every file is read.

        Args:
            ranks: whose parts are looked at; None: all.
        """
        wanted = sorted(range(self.layout.world_size) if ranks is None else ranks)
        present = [self.directory(rank) for rank in wanted if rank in self.found]
        return self.missing(wanted) + [line for path in present for line in atomic.verify(path)]

    def open(self, rank: int, file: str) -> Tensors:
        """A file of tensors of a rank.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if rank not in self.found:
            raise CheckpointError(*self.missing([rank]))
        directory = self.directory(rank)
        if file == "model.safetensors" and not (directory / file).is_file():
            return io.open_directory(directory)  # in shards
        return io.open_file(directory / file)


def steps(path: str | Path, needs: str = "") -> list[Step]:
    """The checkpoints with a folder for each rank that a path means, the last one first.

    Args:
        path: the folder of the ranks, the output of a run, the folder of one rank, or one rank's
            checkpoint, which means that step.
        needs: a file that they must have been written with (`saved.checkpoints`).
    """
    folder, name = _place(Path(path).expanduser())
    if folder is None:
        return []
    found: dict[str, dict[int, Layout]] = {}
    for rank, directory in _rank_folders(folder):
        for checkpoint in saved.checkpoints(directory, needs):
            inner = checkpoint.relative_to(directory).as_posix().removeprefix(".")
            layout = _layout(checkpoint)
            if layout is not None and layout.rank == rank and name in (None, inner):
                found.setdefault(inner, {})[rank] = layout
    every = [_step(folder, inner, layouts) for inner, layouts in found.items()]
    return sorted(every, key=lambda step: (step.step, step.name), reverse=True)


def newest(found: list[Step]) -> Step:
    """The last one that all ranks have undamaged; others are named and passed over.

    Raises:
        CheckpointError: there is none.
    """
    problems: list[str] = []
    for step in found:
        wrong = step.problems()
        if not wrong:
            if problems:
                get_logger(__name__).warning("using %s, the newest that is undamaged", step.where)
            return step
        problems += wrong
        if step is not found[-1]:
            get_logger(__name__).warning("%s; trying the checkpoint before it", "; ".join(wrong))
    raise CheckpointError(*problems)


def has_ranks(path: str | Path) -> bool:
    """Whether a path has folders of ranks, whatever is in them."""
    return _place(Path(path).expanduser())[0] is not None


def folders(path: Path) -> list[Path]:
    """The folders of ranks with weights, whoever wrote them; none where `path` has no ranks."""
    return [folder for _, folder in _rank_folders(path) if io.has_weights(folder)]


def files(folder: str | Path) -> dict[int, Path]:
    """The one weights file in each rank's folder, as MindFormers lays them out.

    Raises:
        CheckpointError: a folder has none or several.
    """
    found, problems = {}, []
    for rank, directory in _rank_folders(Path(folder)):
        weights = io.weight_files(directory)
        if len(weights) == 1:
            found[rank] = weights[0]
        else:
            names = ", ".join(path.name for path in weights) or "no weights"
            problems.append(
                f"{directory}: holds {names}; must hold one .ckpt or .safetensors file; "
                f"leave one there"
            )
    if problems:
        raise CheckpointError(*problems)
    return found


def _layout(checkpoint: Path) -> parts.Layout | None:
    """How a checkpoint is cut; None where that cannot be read, as if it were not there."""
    try:
        return parts.read_layout(checkpoint) or parts.WHOLE
    except CheckpointError as error:
        get_logger(__name__).warning("%s", error)
        return None


def _place(path: Path) -> tuple[Path | None, str | None]:
    """The folder of the ranks, and the name of the checkpoint if the path says it."""
    if not path.is_dir():
        return None, None
    for folder in (path, path / "checkpoint"):
        if next(_rank_folders(folder), None):
            return folder, None
    if _RANK.fullmatch(path.name):
        return path.parent, "" if (path / parts.LAYOUT).exists() else None
    if _RANK.fullmatch(path.parent.name) and (path / parts.LAYOUT).exists():
        return path.parent.parent, path.name
    return None, None


def _rank_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Rank and folder, in order of ranks."""
    names = [path for path in folder.glob("rank_*") if path.is_dir()]
    numbers = ((_RANK.fullmatch(path.name), path) for path in names)
    yield from sorted((int(match[1]), path) for match, path in numbers if match)


def _step(folder: Path, name: str, layouts: dict[int, Layout]) -> Step:
    """The parts that go together: those that are cut like the first of them."""
    first = layouts[min(layouts)]
    alike = [rank for rank, lay in layouts.items() if lay.degrees == first.degrees]
    return Step(folder, name, first, tuple(sorted(alike)))
