"""Baichuan 2 (Yang et al. 2023): Llama's blocks, a normalised head, and for 13B linear biases."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mindspore import Tensor

from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.decoder import Block, CausalLM, stage_layers
from lm_core.nn.mlp import GatedMlp
from lm_core.nn.norm import RmsNorm
from lm_core.nn.rope import Rotary, Rotate

if TYPE_CHECKING:
    from lm_baichuan2.config import Baichuan2Config
    from lm_core.parallel.context import ParallelContext


def _block(config: Baichuan2Config, context: ParallelContext, layer: int) -> Block:
    std, hidden = config.initializer_range, config.hidden_size
    options = {
        "bias": False, "dtype": config.param_init_type, "compute_dtype": config.compute_dtype,
    }  # fmt: skip
    attention = CausalSelfAttention(
        hidden,
        config.num_heads,
        context,
        std=std,
        out_std=std,
        dropout=0.0,
        site=3 * layer,
        rotate=Rotate(config.head_dim) if config.rotates else None,
        linear_biases=not config.rotates,
        blockwise=config.use_flash_attention,
        softmax_type=config.softmax_compute_type,
        **options,
    )
    return Block(
        attention,
        GatedMlp(hidden, config.ffn_size, context, std=std, **options),
        RmsNorm(hidden, config.rms_norm_eps),
        RmsNorm(hidden, config.rms_norm_eps),
        dropout=0.0,
        site=3 * layer + 1,
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
        self.build_end(partial(RmsNorm, config.hidden_size, config.rms_norm_eps))

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids: int32 [T]. Returns [T, H]."""
        return self.embedding(ids)
