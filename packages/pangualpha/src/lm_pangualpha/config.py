"""PanGu-alpha sizes: the published 2.6B and 13B, and a tiny one for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from lm_core.config.activations import HF_ACTIVATIONS, TO_HF, HiddenAct
from lm_core.config.learned_positions import LearnedPositionsConfig
from lm_core.config.section import NonNegative, Positive
from lm_core.errors import ConfigError

# Our field -> their key and the value of a config.json that lacks it (GPTPanguConfig of the port).
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 40000),
    "hidden_size": ("hidden_size", 2560),
    "ffn_hidden_size": ("intermediate_size", None),
    "num_layers": ("num_layers", 32),
    "num_heads": ("num_heads", 32),
    "seq_length": ("max_position_embeddings", 1024),
    "embedding_dropout_prob": ("embd_pdrop", 0.1),
    "hidden_dropout_rate": ("resid_pdrop", 0.1),
    "attention_dropout_rate": ("attn_pdrop", 0.1),
    "layernorm_epsilon": ("layer_norm_epsilon", 1e-5),
    "initializer_range": ("initializer_range", 0.02),
    "bos_token_id": ("bos_token_id", 9),
    "eos_token_id": ("eos_token_id", 9),
}
# Keys that change the network, and the only value of each that this network computes.
_HF_ONLY: dict[str, Any] = {
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "is_encoder_decoder": False,
    "quantization_config": None,
}


class PanguAlphaConfig(LearnedPositionsConfig):
    """The fields of a PanGu-alpha (defaults: the 2.6B model of Zeng et al. 2021)."""

    architectures: ClassVar[Mapping[str, str]] = {
        "GPTPanguForCausalLM": "text_generation",
        "PanguAlphaHeadModel": "text_generation",
        "PanguAlphaModel": "text_generation",
        # The same network; `metric: PromptAccMetric` compares candidate texts by their loss.
        "PanguAlphaPromptTextClassificationModel": "text_generation",
    }
    tie_word_embeddings: ClassVar[bool] = True

    type: Literal["PanguAlphaConfig"] = "PanguAlphaConfig"
    vocab_size: Positive = 40000
    hidden_size: Positive = 2560
    num_layers: Positive = 32
    """With the query layer, which is the last of them."""
    num_heads: Positive = 32
    seq_length: Positive = 1024
    ffn_hidden_size: Positive | None = None
    """F, the width of the feed-forward layer; 4 H when it is not given."""
    hidden_act: HiddenAct = "fast_gelu"

    bos_token_id: NonNegative | None = None
    eos_token_id: NonNegative | list[NonNegative] | None = 9
    """`<eot>`: ends a text."""
    pad_token_id: NonNegative | None = 6
    unk_token_id: NonNegative | None = 0
    eod_token_id: NonNegative | None = 6

    @property
    def ffn_size(self) -> int:
        """F, the width of the feed-forward layer."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that config.json of the PyTorch port describes.

        Keys that do not touch the network (summary_*, use_cache ...) are passed over.

        Raises:
            ConfigError: options that change the network in a way it is not built for, by name, and
                values of a wrong type.
        """
        found = [
            f"{key}: is {values[key]!r}; PanGu-alpha is built for {only!r} only; use another "
            f"checkpoint"
            for key, only in _HF_ONLY.items()
            if key in values and values[key] != only
        ]
        activation = str(values.get("activation_function", "gelu"))
        if activation not in HF_ACTIVATIONS:
            known = ", ".join(HF_ACTIVATIONS)
            found.append(f"activation_function: is {activation!r}; it must be one of {known}")
        if found:
            raise ConfigError(*found)
        fields = {ours: values.get(key, start) for ours, (key, start) in _HF_FIELDS.items()}
        fields["hidden_act"] = HF_ACTIVATIONS[activation]
        # The special tokens of its tokenizer, of which the port's config.json says nothing.
        small = fields["vocab_size"] if isinstance(fields["vocab_size"], int) else 7
        fields["pad_token_id"] = values.get("pad_token_id", 6 if small > 6 else None)
        fields["eod_token_id"] = fields["pad_token_id"]
        return cls.parse(fields)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a config.json of the PyTorch port.

        Raises:
            ConfigError: this network is none that the port can compute.
        """
        if self.post_layernorm_residual:
            raise ConfigError(
                "post_layernorm_residual: is True; the PyTorch port has no such option; the "
                "weights can be written as native or mindformers only"
            )
        return {
            "model_type": "gpt_pangu",
            **self.head_to_hf(),
            "activation_function": TO_HF[self.hidden_act],
            **{key: getattr(self, ours) for ours, (key, _) in _HF_FIELDS.items()},
            "max_position_embeddings": self.positions,
            "pad_token_id": self.pad_token_id,
            "scale_attn_weights": True,
            "tokenizer_class": "GPTPanguTokenizer",
        }

    def parameter_count(self) -> int:
        """Numbers in the weights.

        Per layer: query, key, value and output 4(H^2 + H), feed-forward 2 H F + F + H, two norms
        4H. Outside: tokens V H, positions and queries 2 P H, the norm below the query layer 2H.
        """
        hidden, inner = self.hidden_size, self.ffn_size
        layer = 4 * (hidden**2 + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
        tables = (self.vocab_size + 2 * self.positions) * hidden
        return tables + self.num_layers * layer + 2 * hidden


def _preset(hidden_size: int, num_layers: int, num_heads: int, **fields: Any) -> PanguAlphaConfig:
    return PanguAlphaConfig(
        hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads, **fields
    )


PRESETS: dict[str, PanguAlphaConfig] = {
    "pangualpha_2_6b": _preset(2560, 32, 32),
    "pangualpha_13b": _preset(5120, 40, 40),
    "pangualpha_tiny": _preset(64, 3, 4, vocab_size=4000, seq_length=128),
}
"""By the names of the model card."""
