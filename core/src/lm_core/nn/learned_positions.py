"""Models whose positions are learned: the block that they are made of, and what embeds tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mindspore import Tensor, nn

from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.decoder import Block, CausalLM
from lm_core.nn.dropout import Dropout
from lm_core.nn.embedding import Embedding
from lm_core.nn.mlp import Mlp
from lm_core.nn.norm import LayerNorm
from lm_core.parallel.context import ParallelContext

if TYPE_CHECKING:
    from lm_core.config.learned_positions import LearnedPositionsConfig


def plain_block(
    config: LearnedPositionsConfig,
    context: ParallelContext,
    layer: int,
    *,
    attention: type[CausalSelfAttention] = CausalSelfAttention,
    norm: nn.Cell | None = None,
) -> Block:
    """Attention and a feed-forward layer with biases, each after a LayerNorm.

    Args:
        config: sizes, types, rates of dropout, and the standard deviation of initial weights.
        context: the ranks that share the layers.
        layer: number of the block.
        attention: attends.
        norm: see Block.
    """
    options = {"bias": True, "dtype": config.param_init_type, "compute_dtype": config.compute_dtype}
    std = config.initializer_range
    # Each residual branch starts smaller the deeper the model (GPT-2 paper, section 2.3).
    out_std = std / math.sqrt(2 * config.num_layers)
    site = 1 + 3 * layer
    hidden = config.hidden_size
    return Block(
        attention(
            hidden,
            config.num_heads,
            context,
            std=std,
            out_std=out_std,
            dropout=config.attention_dropout_rate,
            site=site,
            blockwise=config.use_flash_attention,
            softmax_type=config.softmax_compute_type,
            **options,
        ),
        Mlp(
            hidden,
            config.ffn_size,
            config.hidden_act,
            context,
            std=std,
            out_std=out_std,
            **options,
        ),
        LayerNorm(hidden, config.layernorm_epsilon),
        LayerNorm(hidden, config.layernorm_epsilon),
        dropout=config.hidden_dropout_rate,
        site=site + 1,
        residual_from_norm=config.post_layernorm_residual,
        norm=norm,
    )


class LearnedPositionsLM(CausalLM):
    """Base of models that add a learned position to each token."""

    config: LearnedPositionsConfig

    def build_table(self) -> None:
        """The tables of tokens and of positions; see CausalLM."""
        super().build_table()
        if self.context.is_first_stage:
            self.position_embedding = self.table_of_positions()
            self.embedding_dropout = Dropout(self.config.embedding_dropout_prob, 0)

    def table_of_positions(self) -> Embedding:
        """[P, H]."""
        config = self.config
        return Embedding(
            config.positions,
            config.hidden_size,
            std=config.initializer_range,
            dtype=config.param_init_type,
        )

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids, positions: int32 [T]. Returns [T, H]."""
        return self.embedding_dropout(self.embedding(ids) + self.position_embedding(positions), key)
