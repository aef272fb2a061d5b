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
are float32; tools/bench/RESULTS.md compares the result with measured peaks (rows "plan").

Of several ranks each holds its part of the parameters (lm_core.parallel.partition), heads and
feed-forward columns: of the 15 h of a block all but 4 h (inputs of norms and of the products behind
them) are split, of the 8 h that are kept by recomputing all but 1 h. A pipeline stage works on one
batch of `batch_size` records at a time, and keeps the inputs of those that are on their way: P - s
of them in stage s of P. It always adds up gradients in float32. Data-parallel ranks lay some of
their gradients end to end to exchange them, and have these and the sum twice; where they share the
optimizer's state, each has a copy of the weights that it updates. This part has not been measured.

Generation keeps nothing but weights and caches, and at its fullest the products of one block in the
prefill, 6 h and the greater of 2 p and 2 f.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lm_core.parallel import machine
from lm_core.parallel.machine import BYTES
from lm_core.parallel.partition import HEAD, TABLE

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.partition import Partition

Shapes = Mapping[str, tuple[int, ...]]

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


def training(
    run: RunConfig, part: Partition, stage: int = 0, trained: Collection[str] | None = None
) -> Training:
    """The memory of a process that trains a run.

    Args:
        run: all settings.
        part: the model, and how it is cut over processes.
        stage: the pipeline stage of the process.
        trained: those of the parameters that are trained; None: all.
    """
    config = run.model.config
    chosen = [name for name in part.names(stage) if trained is None or name in trained]
    count = sum(prod(part.local_shape(name)) for name in chosen)
    gradients = count * BYTES[config.param_init_type]
    adds_up = run.runner_config.gradient_accumulation_steps > 1 or part.degrees.pipeline_stage > 1
    buffers = 4 * count * adds_up
    step = _Step(run, part, stage)
    applied = gradients + (buffers if adds_up else _largest(part, chosen))
    if part.degrees.data_parallel > 1:
        applied += 2 * 4 * count / part.degrees.gradient_aggregation_group
    weights = part.numbers(stage) * BYTES[config.param_init_type]
    state = _state(run, part, chosen)
    program = _program(run, part, stage)
    activations = step.waiting + step.kept + step.logits
    return Training(
        program=program,
        weights=weights,
        optimizer=state,
        buffers=buffers,
        gradients=gradients,
        activations=activations,
        peak=program + weights + state + buffers + max(activations, applied),
    )


def fullest(run: RunConfig, part: Partition, trained: Collection[str] | None = None) -> int:
    """The pipeline stage whose training takes most."""
    stages = range(part.degrees.pipeline_stage)
    return max(stages, key=lambda stage: training(run, part, stage, trained).peak)


def _program(run: RunConfig, part: Partition, stage: int) -> float:
    """Libraries, and what is left behind by compiling the step."""
    block = _BLOCK[_has_dropout(run.model.config), run.recompute_config.recompute]
    masks = 2 * 4 * run.model.config.seq_length**2
    return LIBRARIES + STEP + len(part.layers(stage)) * (block + masks)


def _state(run: RunConfig, part: Partition, chosen: Collection[str]) -> float:
    """Moments of the optimizer; where they are shared, a part, and its weights once more."""
    moments = 4 * (2 if run.optimizer.type == "adamw" else int(run.optimizer.momentum > 0))
    own = moments + BYTES[run.model.config.param_init_type]
    shared = [name for name in chosen if part.state_dim(name) is not None]
    count, cut = (sum(prod(part.local_shape(name)) for name in some) for some in (chosen, shared))
    return moments * (count - cut) + own * cut / part.degrees.data_parallel


def _largest(part: Partition, chosen: Collection[str]) -> float:
    """The largest gradient once more: squared by clipping, or the second one of a tied table."""
    sizes = {name: 4 * prod(part.local_shape(name)) for name in chosen}
    both = 2 * sizes.get(TABLE, 0) if part.is_tied else 0
    return max([both, *sizes.values()], default=0)


class _Step:
    """Bytes of what a training step keeps; the letters are those of the module docstring."""

    def __init__(self, run: RunConfig, part: Partition, stage: int) -> None:
        config, self.ranks = run.model.config, part.degrees.model_parallel
        rows = run.runner_config.batch_size
        tokens, width = rows * config.seq_length, _width(run)
        self.dropout = _has_dropout(config)
        self.recomputed = run.recompute_config.recompute
        self.hidden = width * tokens * config.hidden_size
        self.inner = width * tokens * sum(_inner(part.shapes)) / self.ranks
        self.scores = width * rows * config.num_heads * config.seq_length**2 / self.ranks
        outputs = _outputs(part) if part.has_head(stage) else 0
        self.logits = 3.3 * 4 * tokens * outputs
        self.kept = self._kept(len(part.layers(stage)))
        # The first stage gets ids, the others float32 activations.
        inputs = tokens * (config.hidden_size if stage else 1)
        degrees = part.degrees
        self.waiting = 0
        if degrees.pipeline_stage > 1:
            on_their_way = min(degrees.micro_batch_num, degrees.pipeline_stage - stage)
            self.waiting = 4 * inputs * on_their_way

    def _kept(self, layers: int) -> float:
        scores = (2 if self.dropout else 1) * self.scores
        working = self.scores + 2 * self.inner
        split, masks = self.hidden / self.ranks, 3 * self.hidden if self.dropout else 0
        block = 4 * self.hidden + 11 * split + masks + 2 * self.inner + scores
        if not self.recomputed:
            return layers * block + working
        left = (5 if self.dropout else 1) * self.hidden + 7 * split + scores
        return layers * left + (block - left) + working


def _outputs(part: Partition) -> int:
    """V of this rank, or the number of classes."""
    if part.config.is_classifier:
        return part.config.num_labels
    cut = part.cut(TABLE if part.is_tied else HEAD)
    return part.config.vocab_size // cut.parts


def generation(run: RunConfig, part: Partition, stage: int = 0, *, rows: int = 1) -> Generation:
    """The memory of a process that generates, with full caches and a prompt that fills them.

    Args:
        run: all settings.
        part: the model, and how it is cut over processes.
        stage: the pipeline stage of the process.
        rows: prompts computed at once.
    """
    config, ranks = run.model.config, part.degrees.model_parallel
    layers = len(part.layers(stage))
    weights = part.numbers(stage) * BYTES[config.param_init_type]
    tokens = rows * config.num_beams * capacity(config)
    cache = 2 * 4 * layers * tokens * _keys(part)
    scores = 4 * rows * config.num_beams * config.num_heads * capacity(config) ** 2 / ranks
    inner = 4 * tokens * sum(_inner(part.shapes)) / ranks
    working = 6 * 4 * tokens * config.hidden_size + 2 * max(inner, scores)
    program = LIBRARIES + DECODER + layers * DECODER_BLOCK
    # Files are mapped while they are read, before anything is compiled.
    later = max(weights, program - LIBRARIES + cache + working)
    return Generation(program, weights, cache, working, LIBRARIES + weights + later)


def capacity(config: ModelConfig) -> int:
    """Tokens of the longest prompt with its answer."""
    return min(
        config.max_decode_length or config.max_length or config.seq_length, config.seq_length
    )


def _width(run: RunConfig) -> int:
    """Bytes of an activation."""
    return machine.width(run.context.device_target, run.model.config.compute_dtype)


def _has_dropout(config: ModelConfig) -> bool:
    rates = [value for name, value in config if "dropout" in name and isinstance(value, float)]
    return any(rate > 0.0 for rate in rates)


def _inner(shapes: Shapes) -> list[int]:
    """F for each matrix that widens a token (`up`, and `gate` where there is one)."""
    names = [f"{_FIRST}mlp.{name}.weight" for name in ("up", "gate")]
    return [shapes[name][1] for name in names if name in shapes]


def _keys(part: Partition) -> int:
    """Numbers in the keys of a token on this rank: fewer than H where heads share them."""
    name = f"{_FIRST}attention.k.weight"
    if name in part.shapes:
        return part.local_shape(name)[1]
    return part.config.hidden_size // part.degrees.model_parallel
