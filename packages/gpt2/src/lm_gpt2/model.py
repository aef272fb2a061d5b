"""GPT-2 (Radford et al. 2019): pre-norm blocks, learned positions, biases, a tied output head."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from mindspore import Tensor

from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.decoder import Block, CausalLM, stage_layers
from lm_core.nn.dropout import Dropout
from lm_core.nn.embedding import Embedding
from lm_core.nn.mlp import Mlp
from lm_core.nn.norm import LayerNorm

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_gpt2.config import Gpt2Config


def _block(config: Gpt2Config, context: ParallelContext, layer: int) -> Block:
    options = {"bias": True, "dtype": config.param_init_type, "compute_dtype": config.compute_dtype}
    std = config.initializer_range
    # Each residual branch starts smaller the deeper the model (GPT-2 paper, section 2.3).
    out_std = std / math.sqrt(2 * config.num_layers)
    site = 1 + 3 * layer
    hidden = config.hidden_size
    return Block(
        CausalSelfAttention(
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
            config.expand_ratio * hidden,
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
    )


class Gpt2(CausalLM):
    """GPT-2 with a language-model head."""

    spec_name = "gpt2"

    def __init__(self, config: Gpt2Config, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        if context.is_first_stage:
            self.position_embedding = Embedding(
                config.positions,
                config.hidden_size,
                std=config.initializer_range,
                dtype=config.param_init_type,
            )
            self.embedding_dropout = Dropout(config.embedding_dropout_prob, 0)
        self.layers = stage_layers(config, context, partial(_block, config, context))
        self.build_end(partial(LayerNorm, config.hidden_size, config.layernorm_epsilon))

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids, positions: int32 [T]. Returns [T, H]."""
        return self.embedding_dropout(self.embedding(ids) + self.position_embedding(positions), key)
