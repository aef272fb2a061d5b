"""Checkpoints in parts: each rank of a run has a folder `rank_R` with what it holds of the model.

`parallel.json` beside the weights says which part they are. Without one a directory is a whole
model, as a single process writes it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_core.checkpoint.atomic import new_file
from lm_core.checkpoint.layout.tensors import Tensors, TensorSpec
from lm_core.config.parallel import ParallelConfig
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy

if TYPE_CHECKING:
    from lm_core.parallel.partition import Partition

LAYOUT = "parallel.json"
"""The file that makes a directory one rank's part."""
STRATEGIES = "strategy"
"""The folder below a run's output with the strategy file of every rank."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run cut its model, and whose part this is."""

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    vocab_emb_dp: bool = True
    optimizer_shard: bool = False
    rank: int = 0

    @classmethod
    def of(cls, degrees: ParallelConfig, rank: int) -> Layout:
        """The layout of a run with these degrees."""
        own = {key: getattr(degrees, key) for key in _DEGREES}
        return cls(**{**own, "optimizer_shard": bool(degrees.optimizer_shard)}, rank=rank)

    @property
    def degrees(self) -> ParallelConfig:
        """The degrees as a run has them."""
        values = {key: getattr(self, key) for key in _DEGREES}
        return ParallelConfig(**values, micro_batch_num=self.pipeline_stage)

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def place(self) -> tuple[int, int, int]:
        """Stage, place among the data-parallel ranks, place among the tensor-parallel ones."""
        stage, rest = divmod(self.rank, self.data_parallel * self.model_parallel)
        return stage, *divmod(rest, self.model_parallel)

    @property
    def cuts_weights(self) -> bool:
        """Whether a rank holds less than the whole model."""
        return self.model_parallel * self.pipeline_stage > 1

    def same_weights(self, other: Layout) -> bool:
        """Whether weights are cut alike; data-parallel ranks hold the same ones."""
        alike = [(lay.model_parallel, lay.pipeline_stage) for lay in (self, other)]
        tables = self.vocab_emb_dp == other.vocab_emb_dp or self.model_parallel == 1
        return alike[0] == alike[1] and tables

    def same_state(self, other: Layout) -> bool:
        """Whether weights and optimizer state are cut alike."""
        shared = [lay.data_parallel if lay.optimizer_shard else 1 for lay in (self, other)]
        return self.same_weights(other) and shared[0] == shared[1]

    def rank_of(self, other: Layout) -> int:
        """The rank here that holds what a rank of a layout that is cut alike holds."""
        stage, data, tensor = other.place
        data %= self.data_parallel
        return (stage * self.data_parallel + data) * self.model_parallel + tensor

    def __str__(self) -> str:
        names = ("data_parallel", "model_parallel", "pipeline_stage")
        shown = [f"{name} {getattr(self, name)}" for name in names]
        shown += [] if self.vocab_emb_dp or self.model_parallel == 1 else ["vocab_emb_dp False"]
        shown += ["optimizer_shard True"] if self.optimizer_shard else []
        return ", ".join(shown)


_DEGREES = tuple(field.name for field in dataclasses.fields(Layout) if field.name != "rank")
WHOLE = Layout()


def write_layout(directory: Path, degrees: ParallelConfig, rank: int) -> None:
    """Says beside a rank's weights which part of the model they are.

    Args:
        directory: what `atomic.new_directory` gave.
        degrees: of the run.
        rank: whose part it is.
    """
    values = dataclasses.asdict(Layout.of(degrees, rank))
    (directory / LAYOUT).write_text(json.dumps(values, indent=1) + "\n")


def read_layout(directory: str | Path) -> Layout | None:
    """Which part of a model a directory holds; None: it is a whole one.

    Raises:
        CheckpointError: the file is not as it was written.
    """
    path = Path(directory) / LAYOUT
    try:
        values = json.loads(path.read_bytes())
        layout = Layout(**values)
        fits = all(type(getattr(layout, key)) is type(getattr(WHOLE, key)) for key in values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        fits = False
    if not fits or not 0 <= layout.rank < layout.world_size:
        raise CheckpointError(
            f"{path}: damaged; must hold the degrees and the rank as they were written; use "
            f"another checkpoint"
        )
    return layout


def write_strategy(output: str | Path, partition: Partition, rank: int) -> Path:
    """Writes this rank's strategy file below the output folder of a run, as MindSpore reads it."""
    degrees = partition.degrees
    stage = rank // (degrees.data_parallel * degrees.model_parallel)
    path = Path(output) / STRATEGIES / f"ckpt_strategy_rank_{rank}.json"
    with new_file(path) as temporary:
        text = strategy.to_json(strategy.of(partition).stages[stage], stage)
        temporary.write_text(text, encoding="utf-8")
    return path


class Sharded:
    """A rank's part of a whole model as `Tensors`, cut tensor by tensor as they are read.

    Args:
        tensors: of the whole model, under our own names.
        partition: how it is cut.
        rank: whose part.
    """

    def __init__(self, tensors: Tensors, partition: Partition, rank: int) -> None:
        stage, _, self._tensor_rank = Layout.of(partition.degrees, rank).place
        self.where = tensors.where
        self.metadata = dict(tensors.metadata)
        self._source, self._partition = tensors, partition
        here = set(partition.names(stage))
        self.specs = {
            name: TensorSpec(partition.local_shape(name), spec.dtype)
            for name, spec in tensors.specs.items()
            if name in here
        }

    def read(self, name: str) -> np.ndarray:
        """The part, which does not keep the whole tensor alive."""
        array = self._source.read(name)
        if array.shape == self.specs[name].shape:
            return array
        return np.array(array[self._partition.slices(name, self._tensor_rank)])
