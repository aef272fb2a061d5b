"""Fields of models whose positions are learned: GPT-2 and PanGu-alpha."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lm_core.config.activations import HiddenAct
from lm_core.config.model import ModelConfig
from lm_core.config.section import Positive, Probability


class LearnedPositionsConfig(ModelConfig):
    """A table of positions, plain feed-forward layers, LayerNorm, three rates of dropout."""

    max_position_embeddings: Positive | None = None
    """Rows of the position table; `seq_length` when it is not given."""
    hidden_act: HiddenAct = "gelu_tanh"
    embedding_dropout_prob: Probability = 0.1
    hidden_dropout_rate: Probability = 0.1
    attention_dropout_rate: Probability = 0.1
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5
    post_layernorm_residual: bool = False
    """Add the normalised input, not the input, to each branch's output."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.seq_length > self.positions:
            found.append(
                f"seq_length: {self.seq_length} is more than the {self.positions} positions "
                f"of the model; use at most {self.positions}, or raise max_position_embeddings"
            )
        return found

    @property
    def positions(self) -> int:
        """P, rows of the position table."""
        return self.max_position_embeddings or self.seq_length

    @property
    def ffn_size(self) -> int:
        """F, the width of the feed-forward layer."""
        raise NotImplementedError
