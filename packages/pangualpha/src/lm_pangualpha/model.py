"""PanGu-alpha (Zeng et al. 2021): GPT blocks, and above them a layer that asks by position.

The last layer computes its queries from a table of its own, a row for each position: what should
stand behind this place? Keys and values come from the blocks below, whose output is normalised once
more before that layer, and nothing is normalised after it. (MindFormers moves that norm behind the
query layer when it trains in pipeline stages, which is another network; the published weights are
of this one.)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mindspore import Tensor, nn

from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.decoder import Block, stage_layers
from lm_core.nn.learned_positions import LearnedPositionsLM, plain_block
from lm_core.nn.norm import LayerNorm

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_pangualpha.config import PanguAlphaConfig


class QueryAttention(CausalSelfAttention):
    """Causal attention whose queries are computed from what the position says, not from x."""

    def query_input(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """tables: the query embedding of each token, [T, H], and nothing else."""
        return self.enter(tables[0])


def _layer(config: PanguAlphaConfig, context: ParallelContext, layer: int) -> Block:
    if layer < config.num_layers - 1:
        return plain_block(config, context, layer)
    norm = LayerNorm(config.hidden_size, config.layernorm_epsilon)
    return plain_block(config, context, layer, attention=QueryAttention, norm=norm)


class PanguAlpha(LearnedPositionsLM):
    """PanGu-alpha with a language-model head, which is its table of tokens."""

    spec_name = "pangualpha"
    config: PanguAlphaConfig

    def __init__(self, config: PanguAlphaConfig, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        self.layers = stage_layers(config, context, partial(_layer, config, context))
        if context.is_last_stage:
            self.query_embedding = self.table_of_positions()
        self.asks = context.is_last_stage
        self.build_end(nn.Identity)

    def position_tables(self, positions: Tensor) -> tuple[Tensor, ...]:
        """What the query layer asks at each position: one of [T, H], or nothing below it."""
        return (self.query_embedding(positions),) if self.asks else ()

    def step_tables(self, positions: Tensor) -> tuple[Tensor, ...]:
        """The same for one token of each row, [B, H]."""
        return self.position_tables(positions)
