"""GPT-2 (Radford et al. 2019): pre-norm blocks, learned positions, biases, a tied output head."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lm_core.nn.decoder import stage_layers
from lm_core.nn.learned_positions import LearnedPositionsLM, plain_block
from lm_core.nn.norm import LayerNorm

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_gpt2.config import Gpt2Config


class Gpt2(LearnedPositionsLM):
    """GPT-2 with a language-model head."""

    spec_name = "gpt2"

    def __init__(self, config: Gpt2Config, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.build_table()
        self.layers = stage_layers(config, context, partial(plain_block, config, context))
        self.build_end(partial(LayerNorm, config.hidden_size, config.layernorm_epsilon))
