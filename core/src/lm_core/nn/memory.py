"""How much memory a model takes, from its shapes alone: nothing is built.

What is counted exactly are weights, gradients, optimizer state and key-value caches. What the graph
of a training step keeps is derived from the layers of this folder, with these letters for bytes:
h = 4 T H, f = 4 T F, p = 4 B N S^2 (probabilities), v = 4 T V.

A block keeps for its backward pass

- the inputs of both norms and of the products behind them, q, k, v and the mixed values by heads
  and again side by side: 9 h by counting, 15 h measured, since some are there in two layouts;
- the input and the output of the activation, 2 f (4 f with a gate);
- the probabilities, p.

Dropout adds masks, 3 h, and the probabilities once more, dropped. A block that is recomputed still
keeps its input and all that a Cell with `bprop` of its own returns, which is what attention holds:
p and about 8 h (12 h with dropout). Beside the blocks the step holds, at its fullest, either

- the activations of all blocks, what the backward pass of the last block works in (p + 2 f), and
  logits, their log-softmax and the gradient of both: 3.3 v;
- or all gradients. A table that is tied to the head gets two of its own before their sum; without
  tying, clipping still squares the largest gradient into a copy.

It is the greater of the two and not their sum, because memory is taken from one pool. Accumulation
adds a buffer for each gradient, and the graph that applies them reads copies.

A process without a model takes 435 MB once MindSpore is loaded, and compiling a training step
takes memory that is not given back: about 100 MB, and for each block 58 MB with dropout (73 where
it is recomputed) and 40 MB without, beside its causal mask, a constant of S^2 numbers, twice.

The constants were fitted to processes of 1 to 48 blocks on the CPU back end, in which activations
are float32; tools/bench/RESULTS.md compares the result with measured peaks (rows "plan"). For
several ranks everything is divided as the degrees say, which has not been measured.

Generation keeps nothing but weights and caches, and at its fullest the products of one block in the
prefill, 6 h and the greater of 2 p and 2 f.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING

from lm_core.parallel import machine

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.config.parallel import ParallelConfig
    from lm_core.config.schema import RunConfig

Shapes = Mapping[str, tuple[int, ...]]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MB = 1_000_000
LIBRARIES = 435 * MB
STEP = 102 * MB
"""Compiling a training step without blocks."""
DECODER = 56 * MB
"""Compiling prefill and step of a generation without blocks."""
DECODER_BLOCK = 8 * MB
_BLOCK = {(False, False): 40 * MB, (True, False): 58 * MB, (False, True): 39 * MB,
          (True, True): 73 * MB}  # fmt: skip
"""(dropout, recomputed) -> compiling one block."""
_LAYER = re.compile(r"layers\.\d+\.")
_FIRST = "layers.0."


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process holds of a model.

    Attributes:
        layers: blocks.
        split: ranks among which heads, feed-forward columns and tables are cut.
        state_split: ranks among which the optimizer state is cut.
        in_flight: parts of a batch whose activations are kept at once.
        parts: into how many parts the batch is cut.
    """

    layers: int
    split: int = 1
    state_split: int = 1
    in_flight: int = 1
    parts: int = 1

    @classmethod
    def of(cls, layers: int, degrees: ParallelConfig, shard_state: bool = False) -> Rank:
        """The fullest rank: the one of the first pipeline stage."""
        parts = degrees.micro_batch_num if degrees.pipeline_stage > 1 else 1
        return cls(
            layers=ceil(layers / degrees.pipeline_stage),
            split=degrees.model_parallel,
            state_split=degrees.data_parallel if shard_state else 1,
            in_flight=min(parts, degrees.pipeline_stage),
            parts=parts,
        )


@dataclass(frozen=True, slots=True)
class Training:
    """Bytes of a training process. The peak is less than their sum; see the module docstring."""

    program: float
    weights: float
    optimizer: float
    buffers: float
    gradients: float
    activations: float
    peak: float


@dataclass(frozen=True, slots=True)
class Generation:
    """Bytes of a process that generates."""

    program: float
    weights: float
    cache: float
    activations: float
    peak: float


def parts(shapes: Shapes) -> dict[str, int]:
    """Parameters by part of the network, all blocks together, norms together."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        part = _LAYER.sub("", name).split(".")[0]
        part = "norms" if part.endswith("norm") else part
        found[part] = found.get(part, 0) + prod(shape)
    return found


def held(shapes: Shapes, rank: Rank, layers: int) -> int:
    """Parameters of one rank: its share of the matrices, all of its norms and biases."""
    total = 0.0
    for name, shape in shapes.items():
        own = rank.layers / layers if _LAYER.match(name) else 1.0
        total += own * prod(shape) / (rank.split if len(shape) > 1 else 1)
    return round(total)


def training(
    run: RunConfig, shapes: Shapes, rank: Rank | None = None, trained: Shapes | None = None
) -> Training:
    """The memory of a process that trains a run.

    Args:
        run: all settings.
        shapes: of the weights, by our names.
        rank: what it holds; None: everything.
        trained: those of the weights that are trained; None: all.
    """
    config = run.model.config
    rank = rank or Rank(config.num_layers)
    trained = shapes if trained is None else trained
    weights = held(shapes, rank, config.num_layers) * BYTES[config.param_init_type]
    count = held(trained, rank, config.num_layers)
    gradients = count * BYTES[config.param_init_type]
    moments = 2 if run.optimizer.type == "adamw" else int(run.optimizer.momentum > 0)
    accumulated = run.runner_config.gradient_accumulation_steps > 1
    buffers = 4 * count * accumulated
    shape = _Step(run, shapes, rank, trained)
    applied = gradients + (buffers if accumulated else shape.largest)
    state = 4 * count * moments / rank.state_split
    masks = 2 * 4 * config.seq_length**2
    block = _BLOCK[shape.dropout, shape.recomputed]
    program = LIBRARIES + STEP + rank.layers * (block + masks)
    fullest = max(shape.kept + shape.logits, applied)
    return Training(
        program=program,
        weights=weights,
        optimizer=state,
        buffers=buffers,
        gradients=gradients,
        activations=shape.kept + shape.logits,
        peak=program + weights + state + buffers + fullest,
    )


class _Step:
    """Bytes of what a training step keeps; the letters are those of the module docstring."""

    def __init__(self, run: RunConfig, shapes: Shapes, rank: Rank, trained: Shapes) -> None:
        config = run.model.config
        rows = ceil(run.runner_config.batch_size / rank.parts)
        tokens, width = rows * config.seq_length, _width(run)
        self.dropout = _has_dropout(config)
        self.recomputed = run.recompute_config.recompute
        self.hidden = width * tokens * config.hidden_size
        self.inner = width * tokens * sum(_inner(shapes)) / rank.split
        self.scores = width * rows * config.num_heads * config.seq_length**2 / rank.split
        outputs = config.num_labels if config.is_classifier else config.vocab_size
        self.logits = 3.3 * 4 * tokens * outputs / rank.split
        self.kept = self._kept(rank.layers, rank.in_flight)
        # With a head of its own, the table's gradient is one of many and the largest is squared.
        tables = prod(trained["embedding.weight"]) if "embedding.weight" in trained else 0
        tied = "head.weight" not in shapes and not config.is_classifier
        self.largest = (2 if tied else 1) * 4 * tables / rank.split

    def _kept(self, layers: int, in_flight: int) -> float:
        scores = (2 if self.dropout else 1) * self.scores
        working = self.scores + 2 * self.inner
        block = (18 if self.dropout else 15) * self.hidden + 2 * self.inner + scores
        if not self.recomputed:
            return in_flight * layers * block + working
        left = (12 if self.dropout else 8) * self.hidden + scores
        return in_flight * layers * left + (block - left) + working


def generation(
    run: RunConfig, shapes: Shapes, rank: Rank | None = None, *, rows: int = 1
) -> Generation:
    """The memory of a process that generates, with full caches and a prompt that fills them.

    Args:
        run: all settings.
        shapes: of the weights, by our names.
        rank: what it holds; None: everything.
        rows: prompts computed at once.
    """
    config = run.model.config
    rank = replace(rank, in_flight=1, parts=1) if rank else Rank(config.num_layers)
    weights = held(shapes, rank, config.num_layers) * BYTES[config.param_init_type]
    tokens = rows * config.num_beams * capacity(config)
    cache = 2 * 4 * rank.layers * tokens * _keys(shapes, config) / rank.split
    scores = 4 * rows * config.num_beams * config.num_heads * capacity(config) ** 2 / rank.split
    inner = 4 * tokens * sum(_inner(shapes)) / rank.split
    working = 6 * 4 * tokens * config.hidden_size + 2 * max(inner, scores)
    program = LIBRARIES + DECODER + rank.layers * DECODER_BLOCK
    # Files are mapped while they are read, before anything is compiled.
    later = max(weights, program - LIBRARIES + cache + working)
    return Generation(program, weights, cache, working, LIBRARIES + weights + later)


def capacity(config: ModelConfig) -> int:
    """Tokens of the longest prompt with its answer."""
    return min(
        config.max_decode_length or config.max_length or config.seq_length, config.seq_length
    )


def _width(run: RunConfig) -> int:
    """Bytes of an activation: a CPU computes in float32 whatever is asked for."""
    if machine.is_meant_for_ascend(run.context.device_target):
        return BYTES[run.model.config.compute_dtype]
    return 4


def _has_dropout(config: ModelConfig) -> bool:
    rates = [value for name, value in config if "dropout" in name and isinstance(value, float)]
    return any(rate > 0.0 for rate in rates)


def _inner(shapes: Shapes) -> list[int]:
    """F for each matrix that widens a token (`up`, and `gate` where there is one)."""
    names = [f"{_FIRST}mlp.{name}.weight" for name in ("up", "gate")]
    return [shapes[name][1] for name in names if name in shapes]


def _keys(shapes: Shapes, config: ModelConfig) -> int:
    """Numbers in the keys of a token: fewer than H where heads share them."""
    shape = shapes.get(f"{_FIRST}attention.k.weight")
    return shape[1] if shape else config.hidden_size
