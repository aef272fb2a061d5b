"""What a rank exchanges in one training step, from shapes and degrees alone: nothing is built.

It follows the layers of lm_core.nn and what the training step does (T = B * S tokens of a batch):

- "tp", in each batch and each block: the sums of attention.out and mlp.down in the forward pass,
  and of the gradient of what both branches read in the backward pass, [T, H] each; the two of the
  forward pass once more where it is computed again (`recompute`, and every pipeline stage but the
  last). A split table adds a sum of [T, H] behind the look-up; split logits one for the gradient of
  the head's input, and three in the cross entropy: [T], [T, 1] and, for the maximum, [T, ranks].
  Gradients of what nothing trained lies before are not computed, nor summed; a last block with
  queries of its own adds that of their table's rows, [T, H]. Once in a step the
  gradients of those factors of adapters are summed that every rank has whole.
- "kv", once in a step: the gradients of heads of keys and values of which there are fewer than
  ranks, among the ranks with the same head.
- "dp", once in a step: the gradients of all that is trained, as float32, laid end to end in about
  `gradient_aggregation_group` pieces. With a sharded optimizer the new weights are gathered in the
  same way, by a sum of what is zero but for each rank's own part.
- "pp", in each batch: [T, H] in float32 to the next stage, and its gradient to the one before.
- "ends", once in a step: the gradient of a table that is tied to the head of another stage.
- Once in a step scalars: loss and number of tokens ("dp", in a pipeline "world"), and the square of
  the gradient ("model", the ranks that together hold one copy).

The bytes of an exchange are those of the whole tensor on one rank. How many of them a rank sends is
that of a ring: each rank gives (n - 1) / n of a tensor to its neighbour to sum it up, and as much
again to spread the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lm_core.parallel import machine
from lm_core.parallel.partition import HEAD, TABLE

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.partition import Partition

SUM, SEND = "all_reduce", "send"


@dataclass(frozen=True, slots=True)
class Exchange:
    """Exchanges of one kind in a step.

    Attributes:
        group: among whom: "tp", "kv", "dp", "pp", "ends", "model" or "world".
        operation: "all_reduce" or "send".
        what: "activations", "gradients", "weights" or "scalars".
        ranks: in the group.
        calls: how many exchanges.
        size: bytes of their tensors together.
    """

    group: str
    operation: str
    what: str
    ranks: int
    calls: int
    size: int

    @property
    def sent(self) -> float:
        """Bytes that this rank sends, over a ring."""
        ring = 2 * (self.ranks - 1) / self.ranks
        return self.size * (ring if self.operation == SUM else 1.0)


def step(
    run: RunConfig, part: Partition, stage: int = 0, trained: Collection[str] | None = None
) -> list[Exchange]:
    """What each rank of a stage exchanges in one update, an entry for each group and purpose.

    Args:
        run: batch and accumulation.
        part: the model, and how it is cut over processes.
        stage: the pipeline stage.
        trained: those of the parameters that are trained; None: all.
    """
    found = _Stage(run, part, stage, trained)
    entries = [*found.tensor(), *found.data(), *found.pipeline(), *found.ends(), *found.scalars()]
    return [entry for entry in entries if entry.ranks > 1 and entry.calls > 0]


_END = (1 << 30, 0)
_PARTS = {"norm": 0, "attention_norm": 0, "attention": 1, "mlp_norm": 2, "mlp": 3}
_QUERIES = "query_embedding.weight"


def _place(name: str, last: int) -> tuple[int, int]:
    """Where a parameter is used, from the tables (-1, 0) by block and part of it to the end.

    Args:
        name: of the parameter.
        last: number of the last block, the one that may have queries of its own.
    """
    if name == _QUERIES:
        return last, _PARTS["attention"]
    words = name.split(".")
    if words[0] == "layers":
        return int(words[1]), _PARTS[words[2]]
    return (-1, 0) if "embedding" in words[0] else _END


class _Stage:
    def __init__(
        self, run: RunConfig, part: Partition, stage: int, trained: Collection[str] | None
    ) -> None:
        self.part, self.number, self.degrees = part, stage, part.degrees
        self.trained = [n for n in part.names(stage) if trained is None or n in trained]
        accumulated = run.runner_config.gradient_accumulation_steps
        self.batches = accumulated * self.degrees.micro_batches
        self.tokens = run.runner_config.batch_size * part.config.seq_length
        # Between layers activations have the type of the weights.
        self.width = machine.width(run.context.device_target, part.config.param_init_type)
        self.passes = 1 if part.has_head(stage) else 2
        self.passes_of_blocks = self.passes + run.recompute_config.recompute

    def tensor(self) -> Iterator[Exchange]:
        """Sums over the ranks that share each layer's weights."""
        hidden = self.width * self.tokens * self.part.config.hidden_size
        wide = len(self.part.layers(self.number)) * 2 * self.passes_of_blocks + self._backward()
        calls, size = 0, 0
        wide += _QUERIES in self.trained
        if self.number == 0 and self.part.cut(TABLE).dim is not None:
            wide += self.passes
        if self.part.has_head(self.number) and self._splits_logits:
            wide += 1
            calls, size = 3, 4 * self.tokens * (2 + self.degrees.model_parallel)
        ranks, calls, size = self.degrees.model_parallel, calls + wide, size + wide * hidden
        yield Exchange("tp", SUM, "activations", ranks, self.batches * calls, self.batches * size)
        shared = [name for name in self.trained if self._is_shared(name)]
        size = 4 * sum(prod(self.part.shapes[name]) for name in shared)
        yield Exchange("tp", SUM, "gradients", ranks, min(1, len(shared)), size)
        repeated = [name for name in self.trained if 1 <= self._parts(name) < ranks]
        if repeated:
            size = 4 * sum(prod(self.part.local_shape(name)) for name in repeated)
            yield Exchange("kv", SUM, "gradients", ranks // self._parts(repeated[0]), 1, size)

    def _parts(self, name: str) -> int:
        """Into how many parts tensor parallelism splits a parameter; 0: it does not."""
        own = self.part.cut(name)
        return 0 if own.dim is None else own.parts

    def _backward(self) -> int:
        """Branches of blocks whose input needs a gradient: something before them is trained."""
        layers = self.part.layers(self.number)
        if self.number > 0:
            return 2 * len(layers)
        last = self.part.config.num_layers - 1
        first = min((_place(name, last) for name in self.trained), default=_END)
        return sum(first < (layer, branch) for layer in layers for branch in (1, 3))

    @property
    def _splits_logits(self) -> bool:
        if self.part.config.is_classifier:
            return False
        return self.part.cut(TABLE if self.part.is_tied else HEAD).dim is not None

    def _is_shared(self, name: str) -> bool:
        """Whether a parameter is the whole factor of an adapter whose other factor is split."""
        layer, _, kind = name.rpartition(".")
        other = {"lora_a": "lora_b", "lora_b": "lora_a"}.get(kind)
        return other is not None and self.part.cut(f"{layer}.{other}").dim is not None

    def data(self) -> Iterator[Exchange]:
        """Gradients, and weights whose update was shared."""
        shared = [name for name in self.trained if self.part.state_dim(name) is not None]
        for what, names in (("gradients", self.trained), ("weights", shared)):
            sizes = [prod(self.part.local_shape(name)) for name in names]
            calls = len(bucket_bounds(sizes, self.degrees.gradient_aggregation_group))
            yield Exchange("dp", SUM, what, self.degrees.data_parallel, calls, 4 * sum(sizes))

    def pipeline(self) -> Iterator[Exchange]:
        """Activations to the next stage, gradients to the one before."""
        stages = self.degrees.pipeline_stage
        neighbours = (self.number > 0) + (self.number < stages - 1)
        tensor = 4 * self.tokens * self.part.config.hidden_size
        calls = self.batches * neighbours
        yield Exchange("pp", SEND, "activations", stages, calls, calls * tensor)

    def ends(self) -> Iterator[Exchange]:
        """The gradient of a table that another stage has, too."""
        if TABLE in self.trained and len(self.part.stages(TABLE)) > 1:
            yield Exchange("ends", SUM, "gradients", 2, 1, 4 * prod(self.part.local_shape(TABLE)))

    def scalars(self) -> Iterator[Exchange]:
        """What all must agree on."""
        degrees = self.degrees
        staged = degrees.pipeline_stage > 1
        group, ranks = ("world", degrees.world_size) if staged else ("dp", degrees.data_parallel)
        yield Exchange(group, SUM, "scalars", ranks, 1, 8)
        copy = degrees.model_parallel * degrees.pipeline_stage
        yield Exchange("model", SUM, "scalars", copy, 1, 4)


def bucket_bounds(sizes: Sequence[int], buckets: int) -> list[tuple[int, int]]:
    """Cuts a row of sizes into at most `buckets` runs of about equal sums: (start, end) of each."""
    if not sizes:
        return []
    ends = np.cumsum(sizes)
    at = [int(np.searchsorted(ends, ends[-1] * k / buckets)) + 1 for k in range(1, buckets + 1)]
    bounds = sorted({0, *(min(end, len(sizes)) for end in at)})
    return list(zip(bounds, bounds[1:], strict=False))
