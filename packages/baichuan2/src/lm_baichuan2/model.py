"""Baichuan 2 (Yang et al. 2023): Llama's blocks, a normalised head, and for 13B linear biases."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mindspore import Tensor

from lm_core.nn.decoder import Block, CausalLM, stage_layers
from lm_core.nn.gated import gated_block
from lm_core.nn.norm import RmsNorm
from lm_core.nn.rope import Rotary, Rotate

if TYPE_CHECKING:
    from lm_baichuan2.config import Baichuan2Config
    from lm_core.parallel.context import ParallelContext


def _norm(config: Baichuan2Config) -> RmsNorm:
    return RmsNorm(config.hidden_size, config.rms_norm_eps)


def _block(config: Baichuan2Config, context: ParallelContext, layer: int) -> Block:
    return gated_block(
        config,
        context,
        layer,
        inner=config.ffn_size,
        norm=partial(_norm, config),
        rotate=Rotate(config.head_dim) if config.rotates else None,
        linear_biases=not config.rotates,
    )


class Baichuan2(CausalLM):
    """Baichuan 2 with a language-model head."""

    spec_name = "baichuan2"

    def __init__(self, config: Baichuan2Config, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        if config.rotates:
            self.rotary = Rotary(config.head_dim, config.theta, None, config.trained_positions)
        self.layers = stage_layers(config, context, partial(_block, config, context))
        self.build_end(partial(_norm, config))

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        return self.embedding(ids)
