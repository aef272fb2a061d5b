"""Sizes of Llama (Touvron et al. 2023), Llama 2 and Code Llama (Roziere et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from lm_core.config.model import FloatType, GatedSizes
from lm_core.config.rope import RopeScaling
from lm_core.config.section import NO_EFFECT, NonNegative, OneOf, Positive
from lm_core.errors import ConfigError

ExtendMethod = Annotated[
    str, OneOf({"None": ("none", ""), "PI": ("pi", "linear"), "NTK": ("ntk",)})
]

# Our field -> their key and the value of a config.json that lacks it (transformers' LlamaConfig).
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("hidden_size", 4096),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "intermediate_size": ("intermediate_size", 11008),
    "seq_length": ("max_position_embeddings", 2048),
    "rms_norm_eps": ("rms_norm_eps", 1e-6),
    "initializer_range": ("initializer_range", 0.02),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "bos_token_id": ("bos_token_id", 1),
    "eos_token_id": ("eos_token_id", 2),
}
# Keys that change the network, and the only value of each that this network computes.
_HF_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}


class LlamaConfig(GatedSizes):
    """The fields of a Llama (defaults: Llama 2 7B)."""

    architectures: ClassVar[Mapping[str, str]] = {
        "LlamaForCausalLM": "text_generation",
        "LlamaModel": "text_generation",
        "LlamaForSequenceClassification": "text_classification",
    }

    computes_positions: ClassVar[bool] = True
    seen_in_shapes: ClassVar[frozenset[str]] = frozenset(
        {"n_kv_heads", "intermediate_size", "multiple_of", "ffn_dim_multiplier"}
    )

    type: Literal["LlamaConfig"] = "LlamaConfig"
    vocab_size: Positive = 32000
    hidden_size: Positive = 4096
    num_layers: Positive = 32
    num_heads: Positive = 32
    n_kv_heads: Positive | None = None
    """Heads of keys and values; `num_heads` when it is not given."""
    seq_length: Positive = 2048
    max_position_embeddings: Positive | None = None
    """The length that the model was trained with; `seq_length` when it is not given."""
    max_position_embedding: Positive | None = None
    """How older run files spell it."""
    rms_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    qkv_has_bias: bool = False
    tie_word_embeddings: bool = False

    theta: Annotated[float, Field(gt=1.0)] = 10000.0
    """Base of the rotary angles."""
    extend_method: ExtendMethod = "None"
    """PI divides positions by scaling_factor, NTK raises theta so that the slowest one does."""
    scaling_factor: Annotated[float, Field(ge=1.0)] = 1.0
    rope_scaling: RopeScaling | None = None
    """The same and more, as Hugging Face writes it."""

    bos_token_id: NonNegative | None = 1
    eos_token_id: NonNegative | list[NonNegative] | None = 2
    pad_token_id: NonNegative | None = 0
    unk_token_id: NonNegative | None = 0

    rotary_dtype: Annotated[FloatType, NO_EFFECT] = "float32"
    qkv_concat: Annotated[bool, NO_EFFECT] = False
    fine_grain_interleave: Annotated[Positive, NO_EFFECT] = 1
    use_rope_slice: Annotated[bool, NO_EFFECT] = False
    pretrain_seqlen: Annotated[Positive | None, NO_EFFECT] = None
    compute_in_2d: Annotated[bool, NO_EFFECT] = True
    use_past_shard: Annotated[bool, NO_EFFECT] = False

    def problems(self) -> list[str]:
        found = super().problems()
        if self.num_heads % self.kv_heads:
            usable = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            found.append(
                f"n_kv_heads: {self.kv_heads} does not divide num_heads {self.num_heads}; "
                f"use one of {', '.join(map(str, usable))}"
            )
        if self.hidden_size % self.num_heads == 0 and self.head_dim % 2:
            found.append(
                f"num_heads: {self.num_heads} heads of {self.head_dim} numbers cannot rotate in "
                f"pairs; hidden_size / num_heads must be even; change one of the two"
            )
        if self.extend_method != "None" and self.rope_scaling is not None:
            found.append(
                f"extend_method: is {self.extend_method} and rope_scaling is given; both stretch "
                f"positions; remove one of them"
            )
        if self.extend_method == "None" and self.scaling_factor != 1.0:
            found.append(
                f"scaling_factor: is {self.scaling_factor:g} and extend_method is None, so it "
                f"would do nothing; set extend_method: PI or NTK"
            )
        if self.rope_scaling is not None:
            found += self.rope_scaling.problems(self.seq_length, self.trained_positions)
        return found

    @property
    def kv_heads(self) -> int:
        """G, heads of keys and values."""
        return self.n_kv_heads or self.num_heads

    @property
    def trained_positions(self) -> int:
        """The length that the model was trained with."""
        return self.max_position_embeddings or self.max_position_embedding or self.seq_length

    @property
    def rope(self) -> RopeScaling:
        """How positions are stretched, whichever way it was said."""
        if self.extend_method == "None":
            return self.rope_scaling or RopeScaling()
        kind = "linear" if self.extend_method == "PI" else "ntk"
        return RopeScaling.parse({"type": kind, "factor": self.scaling_factor})

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a Hugging Face config.json describes.

        Raises:
            ConfigError: options that change the network in a way it is not built for, by name, and
                values of a wrong type.
        """
        found = [
            f"{key}: is {values[key]!r}; Llama is built for {only!r} only; use another checkpoint"
            for key, only in _HF_ONLY.items()
            if key in values and values[key] != only
        ]
        fields = {ours: values.get(key, start) for ours, (key, start) in _HF_FIELDS.items()}
        fields["n_kv_heads"] = values.get("num_key_value_heads") or fields["num_heads"]
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        fields["theta"] = values.get("rope_theta", rope.get("rope_theta", 10000.0))
        heads, own = fields["num_heads"], values.get("head_dim")
        if own is not None and own * heads != fields["hidden_size"]:
            found.append(
                f"head_dim: is {own}; Llama is built for hidden_size / num_attention_heads only; "
                f"use another checkpoint"
            )
        try:
            fields["rope_scaling"] = RopeScaling.from_hf(rope)
        except ConfigError as error:
            found += error.problems
        if found:
            raise ConfigError(*found)
        # Llama was published without a padding token; MindFormers pads with the unknown one.
        pad = values.get("pad_token_id")
        fields["pad_token_id"] = pad if isinstance(pad, int) and pad >= 0 else 0
        return cls.parse({**fields, **cls.head_from_hf(values)})

    def to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face config.json.

        Raises:
            ConfigError: this network is none that Hugging Face's Llama can compute.
        """
        if self.qkv_has_bias:
            raise ConfigError(
                "qkv_has_bias: is True; Hugging Face's Llama has such biases on all four "
                "projections or on none; the weights can be written as native or mindformers only"
            )
        values = {
            "model_type": "llama",
            **{key: getattr(self, ours) for ours, (key, _) in _HF_FIELDS.items()},
            **self.head_to_hf(),
            "intermediate_size": self.ffn_size,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.trained_positions,
            "hidden_act": "silu",
            "rope_theta": self.theta,
            "rope_scaling": None if self.rope.type == "default" else self.rope.to_hf(),
            "torch_dtype": self.param_init_type,
        }
        # A classifier of theirs finds the last token of a row by the padding behind it.
        if self.is_classifier or self.pad_token_id != self.unk_token_id:
            values["pad_token_id"] = self.pad_token_id
        return values

    def parameter_count(self) -> int:
        """Numbers in the weights.

        Per block: query and output 2 H^2, key and value 2 H G D, feed-forward 3 H F, two norms 2 H.
        Outside: the table, the last norm, the head unless tied.
        """
        hidden, kv = self.hidden_size, self.kv_heads * self.head_dim
        block = 2 * hidden**2 + 2 * hidden * kv + 3 * hidden * self.ffn_size + 2 * hidden
        if self.qkv_has_bias:
            block += hidden + 2 * kv
        head = 0 if self.tie_word_embeddings else self.vocab_size * hidden
        if self.is_classifier:
            head = self.num_labels * hidden
        return self.vocab_size * hidden + self.num_layers * block + hidden + head


def _preset(hidden_size: int, num_layers: int, num_heads: int, **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads, **fields
    )


_34B = {"n_kv_heads": 8, "intermediate_size": 22016}


def _code(hidden_size: int, num_layers: int, num_heads: int, **fields: Any) -> LlamaConfig:
    """Code Llama: trained on 16,384 tokens, with a larger base of the angles."""
    fields = {"seq_length": 16384, "theta": 1e6, **fields}
    return _preset(hidden_size, num_layers, num_heads, **fields)


PRESETS: dict[str, LlamaConfig] = {
    "llama_7b": _preset(4096, 32, 32, intermediate_size=11008, rms_norm_eps=1e-6),
    "llama_13b": _preset(5120, 40, 40, intermediate_size=13824, rms_norm_eps=1e-6),
    "llama_30b": _preset(6656, 60, 52, intermediate_size=17920, rms_norm_eps=1e-6),
    # Of the first Llama, Meta trained the largest with another epsilon.
    "llama_65b": _preset(8192, 80, 64, intermediate_size=22016, rms_norm_eps=1e-5),
    "llama2_7b": _preset(4096, 32, 32, intermediate_size=11008, seq_length=4096),
    "llama2_13b": _preset(5120, 40, 40, intermediate_size=13824, seq_length=4096),
    "llama2_70b": _preset(
        8192, 80, 64, n_kv_heads=8, ffn_dim_multiplier=1.3, multiple_of=4096, seq_length=4096
    ),
    # Infilling's four tokens make 32,016 rows, in the sizes that were trained for it.
    "codellama_7b": _code(4096, 32, 32, intermediate_size=11008, vocab_size=32016),
    "codellama_7b_instruct": _code(4096, 32, 32, intermediate_size=11008, vocab_size=32016),
    "codellama_7b_python": _code(4096, 32, 32, intermediate_size=11008),
    "codellama_13b": _code(5120, 40, 40, intermediate_size=13824, vocab_size=32016),
    "codellama_13b_instruct": _code(5120, 40, 40, intermediate_size=13824, vocab_size=32016),
    "codellama_13b_python": _code(5120, 40, 40, intermediate_size=13824),
    "codellama_34b": _code(8192, 48, 64, **_34B),
    "codellama_34b_instruct": _code(8192, 48, 64, **_34B),
    "codellama_34b_python": _code(8192, 48, 64, **_34B),
    # Half of its heads share keys and values, so that tests go through both ways.
    "llama_tiny": _preset(
        64, 2, 4, n_kv_heads=2, intermediate_size=176, vocab_size=1024, seq_length=128
    ),
}
"""By the names of the model cards, with the official norm epsilons and rotary bases."""
