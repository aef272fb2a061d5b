"""Llama (Touvron et al. 2023): pre-norm blocks without biases, rotary positions, gated MLPs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mindspore import Tensor

from lm_core.nn.decoder import Block, CausalLM, stage_layers
from lm_core.nn.gated import gated_block
from lm_core.nn.norm import RmsNorm
from lm_core.nn.rope import Rotary, Rotate

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_llama.config import LlamaConfig


def _norm(config: LlamaConfig) -> RmsNorm:
    return RmsNorm(config.hidden_size, config.rms_norm_eps)


def _block(config: LlamaConfig, context: ParallelContext, layer: int) -> Block:
    return gated_block(
        config,
        context,
        layer,
        inner=config.ffn_size,
        norm=partial(_norm, config),
        kv_heads=config.kv_heads,
        rotate=Rotate(config.head_dim),
        qkv_bias=config.qkv_has_bias,
    )


class Llama(CausalLM):
    """Llama with a language-model head."""

    spec_name = "llama"

    def __init__(self, config: LlamaConfig, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        self.rotary = Rotary(config.head_dim, config.theta, config.rope, config.trained_positions)
        self.layers = stage_layers(config, context, partial(_block, config, context))
        self.build_end(partial(_norm, config))

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        return self.embedding(ids)
