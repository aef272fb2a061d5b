"""ChatGLM2: blocks with few heads of keys, positions that rotate half of a head, gated MLPs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import Tensor, nn

from lm_core.nn.decoder import Block, CausalLM, stage_layers
from lm_core.nn.gated import gated_block
from lm_core.nn.norm import LayerNorm, RmsNorm
from lm_core.nn.rope import Rotary, Rotate
from lm_glm2.config import ChatGlm2Config

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext


def _norm(config: ChatGlm2Config) -> nn.Cell:
    norm = RmsNorm if config.rmsnorm else LayerNorm
    return norm(config.hidden_size, config.layernorm_epsilon)


def _last_norm(config: ChatGlm2Config) -> nn.Cell:
    return _norm(config) if config.post_layer_norm else nn.Identity()


def _block(config: ChatGlm2Config, context: ParallelContext, layer: int) -> Block:
    return gated_block(
        config,
        context,
        layer,
        inner=config.intermediate_size,
        norm=partial(_norm, config),
        bias=config.add_bias_linear,
        branch_dropout=config.hidden_dropout,
        residual_from_norm=config.apply_residual_connection_post_layernorm,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        rotate=Rotate(config.head_dim, config.rotary_dim),
        qkv_bias=config.qkv_bias,
        softmax_type=config.softmax_type,
        dropout=config.attention_dropout,
    )


class ChatGlm2(CausalLM):
    """ChatGLM2 with a language-model head."""

    spec_name = "glm2"
    config: ChatGlm2Config

    def __init__(self, config: ChatGlm2Config, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        self.rotary = Rotary(
            config.head_dim,
            config.theta,
            config.rope_scaling,
            config.trained_positions,
            config.rotary_dim,
        )
        self.layers = stage_layers(config, context, partial(_block, config, context))
        self.build_end(partial(_last_norm, config))
        self.in_float32 = config.fp32_residual_connection

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        x = self.embedding(ids)
        return x.astype(ms.float32) if self.in_float32 else x
