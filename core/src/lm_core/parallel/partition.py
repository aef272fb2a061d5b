"""Which part of every parameter each rank holds, from names and shapes alone: no network is built.

Tensor parallelism splits layers by their names, which are alike in all packages: columns of
`attention.{q,k,v}`, `mlp.{gate,up}` and `head`, rows of `attention.out` and `mlp.down`
(Megatron-LM, section 3). Pipeline parallelism gives each stage whole blocks, the first one the
tables, the last one the final norm and the head; a table that is tied to the head is at both ends.

Networks, strategy files, loading and planning all ask here, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from lm_core.checkpoint.layout.tensors import Shape
from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.config.parallel import ParallelConfig
    from lm_core.parallel.context import ParallelContext


_LAYER = re.compile(r"layers\.(\d+)\.")
_COLUMNS = ("q", "k", "v", "gate", "up")
_ROWS = ("out", "down")
_FIRST_STAGE = ("embedding", "position_embedding")
TABLE = "embedding.weight"
HEAD = "head.weight"


@dataclass(frozen=True, slots=True)
class Cut:
    """How tensor parallelism splits a parameter.

    Attributes:
        dim: the dimension; None: every rank holds all of it.
        parts: how many there are; fewer than ranks where heads share keys and values: neighbours
            hold the same part then.
    """

    dim: int | None = None
    parts: int = 1


WHOLE = Cut()


class Partition:
    """The parts of a model under some degrees of parallelism.

    Args:
        config: the architecture.
        degrees: of parallelism.
        shapes: of all parameters, by our names.

    Raises:
        ConfigError: the degrees do not fit the model; all problems, with the numbers that would.
    """

    def __init__(
        self, config: ModelConfig, degrees: ParallelConfig, shapes: Mapping[str, Shape]
    ) -> None:
        self.config, self.degrees, self.shapes = config, degrees, shapes
        found = problems(config, degrees, shapes)
        if found:
            raise ConfigError(*found)

    def cut(self, name: str) -> Cut:
        """How tensor parallelism splits a parameter."""
        return cut(self.config, self.degrees, name, self.shapes[name])

    def stages(self, name: str) -> tuple[int, ...]:
        """The pipeline stages that hold a parameter; the first of them owns it."""
        last = self.degrees.pipeline_stage - 1
        match = _LAYER.match(name)
        if match:
            return (stage_of(int(match[1]), self.config.num_layers, last + 1),)
        if name.split(".")[0] not in _FIRST_STAGE:
            return (last,)
        at_both = name == TABLE and self.is_tied and last > 0
        return (0, last) if at_both else (0,)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding table."""
        return is_tied(self.config, self.shapes)

    def names(self, stage: int) -> list[str]:
        """The parameters of a stage, in the order of the model."""
        return self._names[stage]

    @cached_property
    def _names(self) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in range(self.degrees.pipeline_stage)]
        for name in self.shapes:
            for stage in self.stages(name):
                found[stage].append(name)
        return found

    def layers(self, stage: int) -> range:
        """The blocks of a stage."""
        return layers_of(stage, self.config.num_layers, self.degrees.pipeline_stage)

    def has_head(self, stage: int) -> bool:
        """Whether a stage ends the model: the last norm, the logits and the loss."""
        return stage == self.degrees.pipeline_stage - 1

    def numbers(self, stage: int, among: Container[str] | None = None) -> int:
        """How many numbers every rank of a stage holds, of some parameters or of all."""
        return sum(
            prod(self.local_shape(name))
            for name in self.names(stage)
            if among is None or name in among
        )

    def local_shape(self, name: str) -> Shape:
        """The shape on every rank that holds a parameter."""
        own = self.cut(name)
        return tuple(
            size // own.parts if dim == own.dim else size
            for dim, size in enumerate(self.shapes[name])
        )

    def slices(self, name: str, tp_rank: int) -> tuple[slice, ...]:
        """Where a rank's part lies in the whole parameter."""
        own, local = self.cut(name), self.local_shape(name)
        part = tp_rank * own.parts // self.degrees.model_parallel
        return tuple(
            slice(part * size, (part + 1) * size) if dim == own.dim else slice(0, size)
            for dim, size in enumerate(local)
        )

    def state_dim(self, name: str) -> int | None:
        """The dimension along which data-parallel ranks share the optimizer state of a parameter.

        None where each keeps all of it: it is not shared, small, or no free dimension divides.
        """
        return state_dim(self.local_shape(name), self.cut(name).dim, self.degrees)


def cut(config: ModelConfig, degrees: ParallelConfig, name: str, shape: Shape) -> Cut:
    """How tensor parallelism splits a parameter of this name and whole shape."""
    ranks = degrees.model_parallel
    if ranks == 1:
        return WHOLE
    *_, layer, kind = ("", *name.split("."))
    if name == TABLE:
        tied = bool(getattr(config, "tie_word_embeddings", False))
        return WHOLE if degrees.vocab_emb_dp else Cut(1 if tied else 0, ranks)
    if name == HEAD:
        return Cut(1, ranks) if shape[1] % ranks == 0 else WHOLE
    if layer in _COLUMNS:
        parts = min(ranks, config.kv_heads) if layer in ("k", "v") else ranks
        return WHOLE if kind == "lora_a" else Cut(len(shape) - 1, parts)
    if layer in _ROWS:
        return Cut(0, ranks) if kind in ("weight", "lora_a") else WHOLE
    return WHOLE


def state_dim(
    local: Shape, cut_dim: int | None, degrees: ParallelConfig | ParallelContext
) -> int | None:
    """The dimension along which data-parallel ranks share the optimizer state of a matrix.

    Args:
        local: the shape that every rank holds.
        cut_dim: the dimension that tensor parallelism splits.
        degrees: of parallelism.
    """
    ranks = degrees.data_parallel
    if not degrees.optimizer_shard or ranks == 1 or len(local) != 2:
        return None
    free = (dim for dim, size in enumerate(local) if dim != cut_dim and size % ranks == 0)
    return next(free, None)


def is_tied(config: ModelConfig, shapes: Mapping[str, Shape]) -> bool:
    """Whether the head is the embedding table."""
    return HEAD not in shapes and not config.is_classifier


def stage_of(layer: int, layers: int, stages: int) -> int:
    """The pipeline stage of a block: stages differ by one block at most, the first has no fewer."""
    return layer * stages // layers


def layers_of(stage: int, layers: int, stages: int) -> range:
    """The blocks of a stage."""
    return range(-(-stage * layers // stages), -(-(stage + 1) * layers // stages))


def problems(
    config: ModelConfig, degrees: ParallelConfig, shapes: Mapping[str, Shape]
) -> list[str]:
    """Why a model cannot be cut like this, one line each, with the numbers that would do."""
    found = [*_tensor_problems(config, degrees, shapes)]
    stages = degrees.pipeline_stage
    if stages > config.num_layers:
        found.append(
            f"parallel_config.pipeline_stage: {stages} is more than the {config.num_layers} layers "
            f"of the model; use 1 to {config.num_layers}"
        )
    if stages > 1 and degrees.micro_batch_num < stages:
        found.append(
            f"parallel_config.micro_batch_num: {degrees.micro_batch_num} is less than "
            f"pipeline_stage {stages}, so stages would idle all the time; use {stages} or more "
            f"(4 x {stages} is good)"
        )
    return found


def _tensor_problems(
    config: ModelConfig, degrees: ParallelConfig, shapes: Mapping[str, Shape]
) -> Iterator[str]:
    ranks = degrees.model_parallel
    sizes = {"heads": config.num_heads}
    inner = shapes.get("layers.0.mlp.up.weight")
    if inner is not None:
        sizes["feed-forward columns"] = inner[1]
    if not degrees.vocab_emb_dp:
        sizes["rows of the vocabulary (or set vocab_emb_dp: True)"] = config.vocab_size
    usable = [n for n in range(1, config.num_heads + 1) if all(s % n == 0 for s in sizes.values())]
    usable = [n for n in usable if _shares_keys(n, config.kv_heads)]
    for what, size in sizes.items():
        if size % ranks:
            yield (
                f"parallel_config.model_parallel: {ranks} does not divide {size} {what}; "
                f"use {_either(usable)}"
            )
    if config.kv_heads < config.num_heads and not _shares_keys(ranks, config.kv_heads):
        yield (
            f"parallel_config.model_parallel: {ranks} neither divides the {config.kv_heads} heads "
            f"of keys and values nor is a multiple of them; use {_either(usable)}"
        )


def _shares_keys(ranks: int, heads: int) -> bool:
    return ranks % heads == 0 or heads % ranks == 0


def _either(numbers: list[int]) -> str:
    """[1, 2, 4] -> "1, 2 or 4"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
