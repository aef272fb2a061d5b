"""What the layers of this folder keep in memory while they compute, from shapes alone.

The letters stand for bytes: h = 4 T H, g = 4 T G D (keys; h where heads do not share them),
f = 4 T F, p = 4 B N S^2 (probabilities), v = 4 T V.

For its backward pass a block keeps the inputs of both norms and of the products behind them, q, k,
v and the mixed values by heads and again side by side, the probabilities p, and

- with a plain feed-forward layer the input and the output of the activation, 2 f: 9 h by counting,
  15 h measured (11 h + 4 g), since some are there in two layouts;
- with a gated one both inputs of the product and the product, 3 f, and 8 h + 3 g.

Dropout adds masks, 3 h, and the probabilities once more, dropped. A block that is recomputed still
keeps its input and all that a Cell with `bprop` of its own returns, which is what attention holds:
p and about 8 h (12 h with dropout); with RMS norms and a gate 5 h + g + 2 f. The backward pass of
one block works in p + 2 f, and 4 h more where positions rotate. Their tables are there once for all
blocks, 2 h + 2 g.

Attention in blocks (`lm_core.nn.blockwise`) keeps no p, but with a plain feed-forward layer 8 h
more. It works in 9 times the probabilities of a block (6 where bands are no loops), outside of
training in 5 times. Of the
mask of a layer whose attention is in one piece there are three, 12 S^2 bytes.

Of several ranks each holds its heads and feed-forward columns: of what a block keeps, all but 4 h
(inputs of norms and of the products behind them) are split, of what is kept by recomputing all but
1 h.

The prefill of a generation works in 6 h, tables, and the greater of 2 p and 2 f (3 f with a gate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_core.nn import block_sizes
from lm_core.parallel import machine

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.partition import Partition

_FIRST = "layers.0."


@dataclass(frozen=True, slots=True)
class _Counts:
    """How many tensors of each size are kept: h on every rank, h of its heads, g, f."""

    whole: float
    heads: float
    keys: float
    inner: float


_KEPT = {
    (False, False): _Counts(4, 7, 4, 2), (False, True): _Counts(1, 5, 2, 0),
    (True, False): _Counts(4, 4, 3, 3), (True, True): _Counts(1, 4, 1, 2),
}  # fmt: skip
"""(gated, recomputed) -> what a block keeps."""
_AT_ONCE = {(False, True): 5, (True, True): 9, (False, False): 5, (True, False): 6}
"""(trains, bands are loops) -> probabilities, and what they are computed from, of a block."""


class Layers:
    """The layers of a model on one rank, reading some records.

    Args:
        run: all settings.
        part: the model, and how it is cut over processes.
        rows: B.
        length: S.
        trains: whether this is a training step.
    """

    def __init__(
        self, run: RunConfig, part: Partition, rows: int, length: int, *, trains: bool
    ) -> None:
        config, ranks = run.model.config, part.degrees.model_parallel
        self.trains, self.recomputed = trains, trains and run.recompute_config.recompute
        self.drops = trains and _has_dropout(config)
        self.on_cpu = not machine.is_meant_for_ascend(run.context.device_target)
        width = machine.width(run.context.device_target, config.compute_dtype)
        self.length, tokens = length, rows * length
        self.hidden = width * tokens * config.hidden_size
        self.split = self.hidden / ranks
        self.keys = width * tokens * keys(part)
        self.inner = width * tokens * _inner(part)
        self.gated, rotates = is_gated(part), "position_embedding.weight" not in part.shapes
        self.tables = 2 * (self.split + self.keys) * rotates
        self.working = 4 * self.hidden * rotates + 2 * self.inner
        heads = rows * config.num_heads // ranks
        self.scores = width * heads * length**2
        self.queries = 0
        """In a block, where attention goes block by block."""
        self.drops_scores = trains and _has_dropout(config, "attention")
        asked, dropped = config.use_flash_attention, self.drops_scores
        if block_sizes.are_read(length, asked=asked, dropped=dropped, trains=trains):
            self.queries = block_sizes.size(length, heads)
            loops = length > block_sizes.BANDS * self.queries
            self.scores = _AT_ONCE[trains, loops] * width * heads * length * self.queries

    @property
    def passes(self) -> int:
        """How often the attention of a layer is compiled."""
        return 1 + self.trains + self.recomputed

    @property
    def bands(self) -> int:
        """Bands of blocks in a pass of a layer; 0: attention is in one piece."""
        return len(block_sizes.bands(self.length, self.queries)) if self.queries else 0

    @property
    def masks(self) -> float:
        """Bytes of the constants of a layer: of a mask of all pairs there are three."""
        return 0 if self.queries else 3 * 4 * self.length**2

    def kept(self, layers: int) -> float:
        """Bytes of a training step at its fullest, when the last block's gradient is computed."""
        attends = 0.0 if self.queries else (1 + self.drops_scores) * self.scores
        block = self._kept(recomputed=False) + attends
        working = self.working + self.scores + self.tables
        if not self.recomputed:
            return layers * block + working
        left = self._kept(recomputed=True) + attends
        return layers * left + (block - left) + working

    def _kept(self, *, recomputed: bool) -> float:
        found = _KEPT[self.gated, recomputed]
        masks = (4 if recomputed else 3) * self.drops
        more = 8 if self.queries and not self.gated else 0
        return (
            (found.whole + masks) * self.hidden
            + (found.heads + more) * self.split
            + found.keys * self.keys
            + found.inner * self.inner
        )

    def prefill(self) -> float:
        """Bytes of the products of one block."""
        scores = (1 if self.queries else 2) * self.scores
        return 6 * self.hidden + self.tables + max(scores, (3 if self.gated else 2) * self.inner)


def _has_dropout(config: ModelConfig, where: str = "") -> bool:
    """Whether anything is dropped in training, or something with this word in its name."""
    rates = [
        value
        for name, value in config
        if "dropout" in name and where in name and isinstance(value, float)
    ]
    return any(rate > 0.0 for rate in rates)


def is_gated(part: Partition) -> bool:
    """Whether the feed-forward layers have a gate."""
    return f"{_FIRST}mlp.gate.weight" in part.shapes


def keys(part: Partition) -> int:
    """Numbers in the keys of a token on this rank: fewer than H where heads share them."""
    name = f"{_FIRST}attention.k.weight"
    if name in part.shapes:
        return part.local_shape(name)[1]
    return part.config.hidden_size // part.degrees.model_parallel


def _inner(part: Partition) -> int:
    """F on this rank."""
    name = f"{_FIRST}mlp.up.weight"
    return part.local_shape(name)[1] if name in part.shapes else 0
