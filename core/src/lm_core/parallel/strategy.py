"""MindSpore's strategy files: how the ranks of each pipeline stage hold each tensor.

A strategy is plain data, so it can be made of a `Partition` or read from the files of any run that
MindSpore cut, and says all that splitting and merging need; no network is built. In a device matrix
such as [DP, TP] an entry `a` of a tensor map cuts its dimension by the matrix's `a`-th entry,
counted from the right; -1 cuts nothing. The rank in a stage is the row-major index of its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.checkpoint.layout.tensors import Shape
from lm_core.config.parallel import ParallelConfig
from lm_core.errors import CheckpointError
from lm_core.parallel.partition import TABLE

if TYPE_CHECKING:
    from lm_core.parallel.partition import Partition


STATES = ("adam.m.", "adam.v.", "sgd.momentum.")
"""What stands before the name of a weight in the names of its optimizer state."""


@dataclass(frozen=True, slots=True)
class Item:
    """How one tensor lies on the ranks of a stage.

    Attributes:
        devices: the device matrix.
        axes: the tensor map: what cuts each dimension.
        state_parts: parts among which MindSpore's optimizer parallelism cuts the first dimension
            further; 0: none. Strategies of ours say that in `axes`.
        state_step: distance of the ranks that hold neighbouring ones of these parts.
    """

    devices: tuple[int, ...]
    axes: tuple[int, ...]
    state_parts: int = 0
    state_step: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether ranks hold different parts."""
        return any(count > 1 for count in self.counts)

    @property
    def counts(self) -> Shape:
        """The number of parts of each dimension."""
        found = [1 if axis < 0 else self.devices[-1 - axis] for axis in self.axes]
        if self.state_parts > 0:
            found[0] *= self.state_parts
        return tuple(found)

    def local(self, whole: Shape) -> Shape:
        """The shape of a part of a tensor."""
        return tuple(size // count for size, count in zip(whole, self.counts, strict=True))

    def whole(self, local: Shape) -> Shape:
        """The shape of the tensor that has such parts."""
        return tuple(size * count for size, count in zip(local, self.counts, strict=True))

    def to_json(self) -> dict[str, Any]:
        """As MindSpore writes it."""
        return {
            "dev_matrix": list(self.devices),
            "tensor_map": list(self.axes),
            "param_split_shape": [],
            "field": 0,
            "opt_weight_shard_size": self.state_parts,
            "opt_weight_shard_step": self.state_step,
        }


Stage = Mapping[str, Item]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a checkpoint is cut.

    Attributes:
        stages: the tensors of each pipeline stage, by name.
        where: the files that said so, for messages.
    """

    stages: tuple[Stage, ...]
    where: str = "strategy"

    @property
    def stage_size(self) -> int:
        """Ranks of a stage."""
        return prod(next((item.devices for item in self.stages[0].values()), (1,)))

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.stage_size * len(self.stages)

    def owner(self, name: str) -> int | None:
        """The first stage that has a tensor; None: no stage has it, so all ranks hold all of it."""
        return next((i for i, stage in enumerate(self.stages) if name in stage), None)


WHOLE = Strategy(({},), "a whole model")
"""One rank, which holds all of everything."""


def kind(name: str) -> int:
    """0 for a weight; for optimizer state the place of its beginning in STATES, from 1."""
    return next((i for i, start in enumerate(STATES, 1) if name.startswith(start)), 0)


def of(partition: Partition) -> Strategy:
    """The strategy of a partition: its parameters, and the optimizer state of each."""
    stages = range(partition.degrees.pipeline_stage)
    return Strategy(tuple(_stage(partition, stage) for stage in stages), "this run")


def degrees(strategy: Strategy) -> ParallelConfig:
    """The degrees that a strategy of ours was made of."""
    items = [item for stage in strategy.stages for item in stage.items()]
    data, *tensor = next((item.devices for _, item in items), (1, 1))
    shared = any(kind(name) and len(item.devices) - 1 in item.axes for name, item in items)
    table = strategy.stages[0].get(TABLE)
    return ParallelConfig(
        data_parallel=data,
        model_parallel=prod(tensor),
        pipeline_stage=len(strategy.stages),
        micro_batch_num=len(strategy.stages),
        optimizer_shard=shared,
        vocab_emb_dp=table is None or not table.is_cut,
    )


def is_of(strategy: Strategy, partition: Partition) -> bool:
    """Whether a strategy cuts the weights of a model as a partition does."""
    weights = [
        [{name: item for name, item in stage.items() if not kind(name)} for stage in one.stages]
        for one in (strategy, of(partition))
    ]
    return weights[0] == weights[1]


def to_json(stage: Stage, number: int) -> str:
    """The strategy file that the ranks of a stage write."""
    items = {"op0": {"stage": number, "parallel_strategy": []}}
    layout = {name: item.to_json() for name, item in stage.items()}
    values = {
        "current_stage": number,
        "parallel_strategy_item": items,
        "parallel_layout_item": layout,
    }
    return json.dumps(values) + "\n"


def read(path: str | Path) -> Strategy:
    """The strategy in a file, or in a folder with files of several ranks.

    Files may be of one stage or merged (`mindspore.merge_pipeline_strategys`), JSON or MindSpore's
    own format.

    Raises:
        CheckpointError: there is none, it is damaged, or a stage is missing.
    """
    path = Path(path).expanduser()
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise CheckpointError(
            f"{path}: holds no strategy file; .json or .ckpt files that MindSpore or lm wrote must "
            f"be there; give another file or folder"
        )
    stages: dict[int, dict[str, Item]] = {}
    # The ranks of a stage write the same.
    for file in {file.read_bytes(): file for file in files}.values():
        for number, items in _read_file(file).items():
            stages.setdefault(number, {}).update(items)
    lacking = sorted(set(range(len(stages))) - stages.keys())
    if lacking:
        raise CheckpointError(
            f"{path}: has pipeline stages {', '.join(map(str, sorted(stages)))}; must have every "
            f"stage from 0 on; put the strategy files of all ranks into one folder"
        )
    found = Strategy(tuple(stages[number] for number in range(len(stages))), str(path))
    _check(found)
    return found


def _stage(partition: Partition, stage: int) -> dict[str, Item]:
    items: dict[str, Item] = {}
    for name in partition.names(stage):
        items[name] = _item(partition, name, None)
        state = _item(partition, name, partition.state_dim(name))
        items.update({f"{start}{name}": state for start in STATES})
    return items


def _item(partition: Partition, name: str, state_dim: int | None) -> Item:
    data, ranks = partition.degrees.data_parallel, partition.degrees.model_parallel
    cut = partition.cut(name)
    axes = [-1] * len(partition.shapes[name])
    devices: tuple[int, ...] = (data, ranks)
    if cut.dim is not None and 1 < cut.parts < ranks:
        # Neighbours hold the same part: the last entry of the matrix cuts nothing.
        devices = (data, cut.parts, ranks // cut.parts)
    if cut.dim is not None and cut.parts > 1:
        axes[cut.dim] = len(devices) - 2
    if state_dim is not None:
        axes[state_dim] = len(devices) - 1
    return Item(devices, tuple(axes))


def _files(folder: Path) -> list[Path]:
    """The strategy files of a folder: of ranks before merged ones, MindSpore's before ours."""
    for pattern in ("*strategy*rank_*.ckpt", "*strategy*rank_*.json", "*strategy*.*"):
        found = sorted(path for path in folder.glob(pattern) if path.suffix in (".ckpt", ".json"))
        if found:
            return found
    return []


def _read_file(path: Path) -> dict[int, dict[str, Item]]:
    """The tensors of each stage that a file is about."""
    try:
        layouts, own = _layouts(path), _own_stage(path)
    except Exception as error:  # MindSpore raises whatever its parsers raise.
        raise CheckpointError(
            f"{path}: cannot be read as a strategy file ({type(error).__name__}); must be as "
            f"MindSpore or lm wrote it; use another copy"
        ) from error
    found: dict[int, dict[str, Item]] = {}
    for name, layout in layouts.items():
        number, _, rest = name.partition("-")
        merged = rest != "" and number.isdigit()
        stage, name = (int(number), rest) if merged else (own, name)
        found.setdefault(stage, {})[name] = _read_item(path, name, layout)
    if not found:
        raise CheckpointError(f"{path}: names no tensor; a strategy file has some; use another")
    return found


def _layouts(path: Path) -> Mapping[str, Any]:
    from mindspore.parallel import build_searched_strategy

    return build_searched_strategy(str(path))


def _own_stage(path: Path) -> int:
    """The stage that an unmerged file is of."""
    if path.suffix == ".json":
        items = json.loads(path.read_bytes()).get("parallel_strategy_item") or {}
        return int(next(iter(items.values()))["stage"]) if items else 0
    from mindspore.train import node_strategy_pb2

    parsed = node_strategy_pb2.ParallelStrategyMap()  # type: ignore[attr-defined]
    parsed.ParseFromString(path.read_bytes())
    items = parsed.parallel_strategy_item
    return int(items[0].parallel_strategys.stage) if items else 0


def _read_item(path: Path, name: str, layout: Any) -> Item:
    devices = tuple(layout.dev_matrix[0].dim) if len(layout.dev_matrix) == 1 else ()
    if layout.field or not devices or len(layout.tensor_map) != 1:
        raise CheckpointError(
            f"{path}: {name} is cut by a field, by several axes, or by no devices; must be cut by "
            f"one axis of a device matrix for each dimension; merge that run with MindSpore"
        )
    parts, step = int(layout.opt_weight_shard_size), int(layout.opt_weight_shard_step)
    return Item(devices, tuple(layout.tensor_map[0].dim), parts, step)


def _check(strategy: Strategy) -> None:
    """All tensors must lie on the same number of ranks."""
    sizes = {prod(item.devices) for stage in strategy.stages for item in stage.values()}
    if len(sizes) > 1:
        listed = ", ".join(map(str, sorted(sizes)))
        raise CheckpointError(
            f"{strategy.where}: has tensors on stages of {listed} ranks; must be one number; put "
            f"the strategy files of one run alone into a folder"
        )
