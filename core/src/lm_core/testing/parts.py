"""Checkpoints of several ranks, made without starting several: a whole one is cut by NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.checkpoint import atomic, io, parts, saved, tensorfile
from lm_core.checkpoint.layout.tensors import Memory, Tensors
from lm_core.config.of_checkpoint import RUN
from lm_core.config.parallel import ParallelConfig
from lm_core.parallel.partition import Partition
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec


def degrees(dp: int = 1, tp: int = 1, pp: int = 1, **more: Any) -> ParallelConfig:
    """Degrees by short names."""
    return ParallelConfig(
        data_parallel=dp, model_parallel=tp, pipeline_stage=pp, micro_batch_num=pp, **more
    )


def partition(
    spec: ModelSpec, config: ModelConfig, dp: int = 1, tp: int = 1, pp: int = 1, **more: Any
) -> Partition:
    """How these degrees cut a model."""
    return Partition(config, degrees(dp, tp, pp, **more), targets.shapes(spec, config))


def whole(spec: ModelSpec, config: ModelConfig, seed: int = 0) -> tuple[Memory, Memory]:
    """Random weights and optimizer state of a model, in the order in which a network has them."""
    random = np.random.default_rng(seed)
    shapes = targets.shapes(spec, config)
    order = {name.rpartition(".")[0]: place for place, name in reversed([*enumerate(shapes)])}
    shapes = dict(sorted(shapes.items(), key=lambda item: order[item[0].rpartition(".")[0]]))
    trained = targets.trained(shapes, config.pet_config)
    weights = {name: random.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    moments = {
        f"adam.{kind}.{name}": random.normal(size=shape).astype("<f4")
        for kind in "mv"
        for name, shape in shapes.items()
        if name in trained
    }
    return Memory(weights), Memory(moments)


def cut(tensors: Tensors, own: Partition, rank: int) -> Memory:
    """A rank's part, written from the description of a partition and not from our code."""
    size, ranks = own.degrees.data_parallel, own.degrees.model_parallel
    stage, data, tensor = rank // (size * ranks), rank // ranks % size, rank % ranks
    arrays = {}
    for name in tensors.specs:
        weight = name.split(".", 2)[2] if name.startswith("adam.") else name
        if stage not in own.stages(weight):
            continue
        array = tensors.read(name)[own.slices(weight, tensor)]
        dim = own.state_dim(weight) if weight != name else None
        arrays[name] = array if dim is None else np.split(array, size, dim)[data]
    return Memory({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def write(
    directory: Path, spec: ModelSpec, tensors: Sequence[Tensors], own: Partition, rank: int
) -> None:
    """One rank's checkpoint, as training writes it."""
    step = saved.step_of(directory)
    weights, moments = (cut(one, own, rank) for one in tensors)
    with atomic.new_directory(directory) as made:
        io.write_native(made, spec.name, own.config, weights)
        tensorfile.write(made / saved.OPTIMIZER, moments)
        (made / saved.STATE).write_text(json.dumps({"version": 1, "step": step}))
        (made / RUN).write_text("seed: 0\n")
        (made / saved.METRICS).write_text(f'{{"step": {step}, "rank": {rank}}}\n')
        if own.degrees.world_size > 1:
            parts.write_layout(made, own.degrees, rank)


def write_all(
    folder: Path, spec: ModelSpec, tensors: Sequence[Tensors], own: Partition, step: int = 4
) -> Path:
    """The checkpoint of all ranks, `folder/rank_R/CKP-step`."""
    for rank in range(own.degrees.world_size):
        write(folder / f"rank_{rank}" / f"CKP-{step}", spec, tensors, own, rank)
    return folder
