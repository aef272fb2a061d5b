"""How much memory a model takes, from its shapes alone: nothing is built.

Counted exactly are weights, gradients, optimizer state and key-value caches;
lm_core.nn.layer_memory says what layers keep (T tokens, V words: v = 4 T V bytes).

Beside the blocks a training step holds, at its fullest, either

- the activations of all blocks, what the backward pass of the last block works in, and logits,
  their log-softmax and the gradient of both: 3.3 v;
- or all gradients. A table that is tied to the head gets two of its own before their sum; without
  tying, clipping still squares the largest gradient into a copy.

It is the greater of the two and not their sum, because memory is taken from one pool. Accumulation
adds a buffer for each gradient, and the graph that applies them reads copies.

A process without a model takes 435 MB once MindSpore is loaded, and compiling a training step
takes memory that is not given back: about 100 MB, and for each block about 40 MB, 18 MB more with
dropout, and 7 MB for each band of attention in blocks; and causal masks are constants. On an Ascend
card, programs are the host's and not counted.

The constants were fitted to processes of 1 to 48 blocks on the CPU back end, in which activations
are float32 (with other weights than float32 it takes several times as much);
tools/bench/RESULTS.md compares the result with measured peaks (rows "plan").

Several ranks share weights as lm_core.parallel.partition says. A pipeline stage works on one
batch of `batch_size` records at a time, and keeps the inputs of those that are on their way: P - s
of them in stage s of P. It always adds up gradients in float32. Data-parallel ranks lay some of
their gradients end to end to exchange them, and have these and the sum twice; where they share the
optimizer's state, each has a copy of the weights that it updates. This part has not been measured.

Generation keeps weights and caches, and at its fullest what the prefill of one block works in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lm_core.nn.layer_memory import Layers, keys
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
DECODER_BLOCK = {False: 8 * MB, True: 14 * MB}
"""The same for each block: plain, gated."""
_BLOCK = {(False, False): 40 * MB, (False, True): 39 * MB,
          (True, False): 36 * MB, (True, True): 42 * MB}  # fmt: skip
"""(gated, recomputed) -> compiling one block."""
_DROPOUT = {False: 18 * MB, True: 34 * MB}
"""recomputed -> what dropout adds to that."""
_ADAPTER = 9 * MB
"""What dropout in one adapter adds."""
_BAND = {False: 7 * MB, True: 9 * MB}
"""recomputed -> what each band of attention in blocks adds."""
_LAYER = re.compile(r"layers\.\d+\.")


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
    rows, length = run.runner_config.batch_size, config.seq_length
    layers, blocks = Layers(run, part, rows, length, trains=True), len(part.layers(stage))
    applied = gradients + (buffers if adds_up else _largest(part, chosen))
    if part.degrees.data_parallel > 1:
        applied += 2 * 4 * count / part.degrees.gradient_aggregation_group
    weights = part.numbers(stage) * BYTES[config.param_init_type]
    state = _state(run, part, chosen)
    program = _program(run, layers, blocks, chosen)
    logits = 3.3 * 4 * rows * length * (_outputs(part) if part.has_head(stage) else 0)
    activations = _waiting(part, stage, rows * length) + layers.kept(blocks) + logits
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


def _program(run: RunConfig, layers: Layers, count: int, chosen: Collection[str]) -> float:
    """Libraries, what is left behind by compiling the step, and constants."""
    constants = count * layers.masks
    if not layers.on_cpu:
        return constants
    block = _BLOCK[layers.gated, layers.recomputed] + layers.drops * _DROPOUT[layers.recomputed]
    block += layers.passes * layers.bands * _BAND[layers.recomputed]
    pet = run.model.config.pet_config
    dropped = pet is not None and pet.lora_dropout > 0.0
    adapters = dropped * sum(name.endswith(".lora_a") for name in chosen)
    return LIBRARIES + STEP + count * block + adapters * _ADAPTER + constants


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


def _waiting(part: Partition, stage: int, tokens: int) -> int:
    """Inputs of the batches that are on their way through a pipeline."""
    degrees = part.degrees
    if degrees.pipeline_stage == 1:
        return 0
    # The first stage gets ids, the others float32 activations.
    inputs = tokens * (part.config.hidden_size if stage else 1)
    return 4 * inputs * min(degrees.micro_batch_num, degrees.pipeline_stage - stage)


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
    config, blocks = run.model.config, len(part.layers(stage))
    weights = part.numbers(stage) * BYTES[config.param_init_type]
    rows, length = rows * config.num_beams, capacity(config)
    cache = 2 * 4 * blocks * rows * length * keys(part)
    layers = Layers(run, part, rows, length, trains=False)
    working, constants = layers.prefill(), blocks * layers.masks
    program = constants
    if layers.on_cpu:
        program += LIBRARIES + DECODER + blocks * DECODER_BLOCK[layers.gated]
    return Generation(program, weights, cache, working, program + weights + cache + working)


def capacity(config: ModelConfig) -> int:
    """Tokens of the longest prompt with its answer."""
    return min(
        config.max_decode_length or config.max_length or config.seq_length, config.seq_length
    )
