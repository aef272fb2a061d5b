"""GPT-2 sizes: OpenAI's four, Cerebras-GPT's 13B, the card's 52B, and a tiny one for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from lm_core.config.activations import HF_ACTIVATIONS, TO_HF
from lm_core.config.learned_positions import LearnedPositionsConfig
from lm_core.config.section import NonNegative, Positive
from lm_core.errors import ConfigError

# Our field -> their key and the value of a config.json that lacks it (transformers' GPT2Config).
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50257),
    "hidden_size": ("n_embd", 768),
    "num_layers": ("n_layer", 12),
    "num_heads": ("n_head", 12),
    "seq_length": ("n_positions", 1024),
    "embedding_dropout_prob": ("embd_pdrop", 0.1),
    "hidden_dropout_rate": ("resid_pdrop", 0.1),
    "attention_dropout_rate": ("attn_pdrop", 0.1),
    "layernorm_epsilon": ("layer_norm_epsilon", 1e-5),
    "initializer_range": ("initializer_range", 0.02),
    "tie_word_embeddings": ("tie_word_embeddings", True),
    "bos_token_id": ("bos_token_id", 50256),
    "eos_token_id": ("eos_token_id", 50256),
}
# Keys that change the network, and the only value of each that this network computes.
_HF_ONLY: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "quantization_config": None,
}


class Gpt2Config(LearnedPositionsConfig):
    """The fields of a GPT-2 (defaults: the 124M model of Radford et al. 2019)."""

    architectures: ClassVar[Mapping[str, str]] = {
        "GPT2LMHeadModel": "text_generation",
        "GPT2Model": "text_generation",
        "GPT2ForSequenceClassification": "text_classification",
    }

    type: Literal["GPT2Config", "Gpt2Config"] = "GPT2Config"
    vocab_size: Positive = 50257
    hidden_size: Positive = 768
    num_layers: Positive = 12
    num_heads: Positive = 12
    seq_length: Positive = 1024
    expand_ratio: Positive = 4
    """Width of the feed-forward layer as a multiple of hidden_size."""
    tie_word_embeddings: bool = True

    # One token, <|endoftext|>, has all four parts: the vocabulary's last unless said otherwise.
    bos_token_id: NonNegative | None = 50256
    eos_token_id: NonNegative | list[NonNegative] | None = 50256
    pad_token_id: NonNegative | None = 50256
    unk_token_id: NonNegative | None = 50256

    def model_post_init(self, context: Any, /) -> None:
        """Places the special token before the checks see it."""
        for part in ("bos", "eos", "pad", "unk"):
            if not self.is_set(f"{part}_token_id"):
                # Past __setattr__, so that the field still counts as not given.
                self.__dict__[f"{part}_token_id"] = self.vocab_size - 1
        super().model_post_init(context)

    @property
    def ffn_size(self) -> int:
        """F, the width of the feed-forward layer."""
        return self.expand_ratio * self.hidden_size

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a Hugging Face config.json describes.

        Keys that do not touch the network (summary_*, use_cache, task_specific_params ...) are
        passed over.

        Raises:
            ConfigError: options that change the network in a way it is not built for, by name, and
                values of a wrong type.
        """
        found = [
            f"{key}: is {values[key]!r}; GPT-2 is built for {only!r} only; use another checkpoint"
            for key, only in _HF_ONLY.items()
            if key in values and values[key] != only
        ]
        fields = {ours: values.get(key, start) for ours, (key, start) in _HF_FIELDS.items()}
        activation = str(values.get("activation_function", "gelu_new"))
        if activation not in HF_ACTIVATIONS:
            known = ", ".join(HF_ACTIVATIONS)
            found.append(f"activation_function: is {activation!r}; it must be one of {known}")
        hidden, inner = fields["hidden_size"], values.get("n_inner")
        sizes_known = isinstance(hidden, int) and isinstance(inner, int)
        if inner is not None and not (sizes_known and inner % hidden == 0):
            found.append(f"n_inner: is {inner!r}; it must be a multiple of n_embd {hidden!r}")
        if found:
            raise ConfigError(*found)
        fields["hidden_act"] = HF_ACTIVATIONS[activation]
        fields["expand_ratio"] = 4 if inner is None else inner // hidden
        first = fields["eos_token_id"]
        first = first[0] if isinstance(first, list) else first
        # GPT-2 was published without a padding token; its end of text pads as well.
        fields["pad_token_id"] = values.get("pad_token_id", first)
        fields["unk_token_id"] = first
        return cls.parse({**fields, **cls.head_from_hf(values)})

    def to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face config.json.

        Raises:
            ConfigError: this network is none that Hugging Face's GPT-2 can compute.
        """
        if self.post_layernorm_residual:
            raise ConfigError(
                "post_layernorm_residual: is True; Hugging Face's GPT-2 has no such option; "
                "the weights can be written as native or mindformers only"
            )
        values = {
            "model_type": "gpt2",
            **self.head_to_hf(),
            "activation_function": TO_HF[self.hidden_act],
            "n_inner": None if self.expand_ratio == 4 else self.expand_ratio * self.hidden_size,
            **{key: getattr(self, ours) for ours, (key, _) in _HF_FIELDS.items()},
            "n_positions": self.positions,
            "n_ctx": self.positions,
        }
        # A classifier of theirs finds the last token of a row by the padding behind it.
        if self.is_classifier or self.pad_token_id not in self.eos_token_ids:
            values["pad_token_id"] = self.pad_token_id
        return values

    def parameter_count(self) -> int:
        """Numbers in the weights.

        Per block: query, key, value and output 4(H^2 + H), feed-forward 2 r H^2 + (r + 1) H with
        r = expand_ratio, two norms 4H. Outside: both tables, the last norm, the head unless tied.
        """
        hidden, ratio = self.hidden_size, self.expand_ratio
        block = (4 + 2 * ratio) * hidden**2 + (4 + ratio + 1 + 4) * hidden
        head = 0 if self.tie_word_embeddings else self.vocab_size * hidden
        if self.is_classifier:
            head = self.num_labels * hidden
        tables = (self.vocab_size + self.positions) * hidden
        return tables + self.num_layers * block + 2 * hidden + head


def _preset(hidden_size: int, num_layers: int, num_heads: int, **fields: Any) -> Gpt2Config:
    return Gpt2Config(hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads, **fields)


PRESETS: dict[str, Gpt2Config] = {
    "gpt2": _preset(768, 12, 12),
    "gpt2_medium": _preset(1024, 24, 16),
    "gpt2_large": _preset(1280, 36, 20),
    "gpt2_xl": _preset(1600, 48, 25),
    # Cerebras-GPT-13B was trained with the exact GELU; the card's 52B has x * sigmoid(1.702 x).
    "gpt2_13b": _preset(5120, 40, 40, seq_length=2048, hidden_act="gelu_exact"),
    "gpt2_52b": _preset(8192, 64, 32, hidden_act="fast_gelu"),
    "gpt2_tiny": _preset(64, 2, 4, seq_length=128),
}
"""By the names of the model card. Activations are those of the published weights."""
