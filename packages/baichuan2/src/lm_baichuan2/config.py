"""Sizes of Baichuan 2 (Yang et al. 2023): 7B with rotary positions, 13B with linear biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from lm_core.config.model import FloatType, GatedSizes
from lm_core.config.section import NO_EFFECT, NonNegative, Positive
from lm_core.errors import ConfigError

# Our field -> their key and the value of a config.json that lacks it (their configuration class).
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 125696),
    "hidden_size": ("hidden_size", 4096),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "intermediate_size": ("intermediate_size", 11008),
    "seq_length": ("model_max_length", 4096),
    "rms_norm_eps": ("rms_norm_eps", 1e-6),
    "initializer_range": ("initializer_range", 0.02),
    "bos_token_id": ("bos_token_id", 1),
    "eos_token_id": ("eos_token_id", 2),
    "pad_token_id": ("pad_token_id", 0),
}
# Keys that change the network, and the only value of each that this network computes.
_HF_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "z_loss_weight": 0,
}
_FIRST_VOCABULARY = 64000
"""Of the first Baichuan, whose files are of the same type and whose head is an ordinary one."""


class Baichuan2Config(GatedSizes):
    """The fields of a Baichuan 2 (defaults: 7B)."""

    architectures: ClassVar[Mapping[str, str]] = {
        "BaichuanForCausalLM": "text_generation",
        "Baichuan7BV2ForCausalLM": "text_generation",
        "Baichuan13BV2ForCausalLM": "text_generation",
    }
    implied: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "Baichuan7BV2ForCausalLM": {"position_embedding": "rope"},
        "Baichuan13BV2ForCausalLM": {"position_embedding": "alibi"},
    }
    # Run files of MindFormers use its class for Llama.
    types_of_others: ClassVar[frozenset[str]] = frozenset({"LlamaConfig"})
    normalised_head: ClassVar[bool] = True

    computes_positions: ClassVar[bool] = True
    seen_in_shapes: ClassVar[frozenset[str]] = frozenset(
        {"intermediate_size", "multiple_of", "ffn_dim_multiplier"}
    )

    type: Literal["Baichuan2Config", "BaichuanConfig", "LlamaConfig"] = "Baichuan2Config"
    vocab_size: Positive = 125696
    hidden_size: Positive = 4096
    num_layers: Positive = 32
    num_heads: Positive = 32
    seq_length: Positive = 4096
    position_embedding: Literal["rope", "alibi"] = "rope"
    """Rotary positions, or scores that fall with the distance."""
    max_position_embeddings: Positive | None = None
    """The length that the model was trained with; `seq_length` when it is not given."""
    rms_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-6
    theta: Annotated[float, Field(gt=1.0)] = 10000.0
    """Base of the rotary angles."""

    bos_token_id: NonNegative | None = 1
    eos_token_id: NonNegative | list[NonNegative] | None = 2
    pad_token_id: NonNegative | None = 0
    unk_token_id: NonNegative | None = 0

    # The tokenizer has these from its vocabulary.
    user_token_id: Annotated[NonNegative, NO_EFFECT] = 195
    assistant_token_id: Annotated[NonNegative, NO_EFFECT] = 196
    n_kv_heads: Annotated[None, NO_EFFECT] = None
    rotary_dtype: Annotated[FloatType, NO_EFFECT] = "float32"
    qkv_concat: Annotated[bool, NO_EFFECT] = False
    fine_grain_interleave: Annotated[Positive, NO_EFFECT] = 1
    use_rope_slice: Annotated[bool, NO_EFFECT] = False
    pretrain_seqlen: Annotated[Positive | None, NO_EFFECT] = None
    compute_in_2d: Annotated[bool, NO_EFFECT] = True
    use_past_shard: Annotated[bool, NO_EFFECT] = False
    extend_method: Annotated[Literal["None"], NO_EFFECT] = "None"
    scaling_factor: Annotated[float, Field(ge=1.0, le=1.0), NO_EFFECT] = 1.0

    def problems(self) -> list[str]:
        found = super().problems()
        if self.rotates and self.hidden_size % self.num_heads == 0 and self.head_dim % 2:
            found.append(
                f"num_heads: {self.num_heads} heads of {self.head_dim} numbers cannot rotate in "
                f"pairs; hidden_size / num_heads must be even; change one of the two"
            )
        return found

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are turned by their positions."""
        return self.position_embedding == "rope"

    @property
    def trained_positions(self) -> int:
        """The length that the model was trained with."""
        return self.max_position_embeddings or self.seq_length

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a published config.json describes.

        Only files of 7B have `max_position_embeddings`: 13B has no positions that could end.

        Raises:
            ConfigError: options that change the network in a way it is not built for, by name, and
                values of a wrong type.
        """
        found = [
            f"{key}: is {values[key]!r}; Baichuan2 is built for {only!r} only; use another "
            f"checkpoint"
            for key, only in _HF_ONLY.items()
            if key in values and values[key] != only
        ]
        if values.get("quantization_config"):
            found.append(
                "quantization_config: is given, so the weights are quantized; must be of float16 "
                "or bfloat16; use the checkpoint without 4bits in its name"
            )
        if values.get("vocab_size") == _FIRST_VOCABULARY:
            found.append(
                f"vocab_size: is {_FIRST_VOCABULARY}, that of the first Baichuan, which is another "
                f"network; must be of Baichuan 2 (125696); use another checkpoint"
            )
        if found:
            raise ConfigError(*found)
        fields = {ours: values.get(key, start) for ours, (key, start) in _HF_FIELDS.items()}
        positions = values.get("max_position_embeddings")
        fields["position_embedding"] = "alibi" if positions is None else "rope"
        fields["max_position_embeddings"] = positions
        for key in ("user_token_id", "assistant_token_id"):
            if key in values:
                fields[key] = values[key]
        return cls.parse({**fields, **cls.head_from_hf(values)})

    def to_hf(self) -> dict[str, Any]:
        """The contents of a published config.json."""
        positions = {"max_position_embeddings": self.trained_positions} if self.rotates else {}
        return {
            "model_type": "baichuan",
            **self.head_to_hf(),
            "auto_map": {
                "AutoConfig": "configuration_baichuan.BaichuanConfig",
                "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
            },
            "tokenizer_class": "BaichuanTokenizer",
            **{key: getattr(self, ours) for ours, (key, _) in _HF_FIELDS.items()},
            "intermediate_size": self.ffn_size,
            **positions,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "z_loss_weight": 0,
            "use_cache": True,
            "torch_dtype": self.param_init_type,
        }

    def generation_to_hf(self) -> dict[str, Any]:
        """With the tokens of both roles, for which the published program looks there."""
        roles = ("user_token_id", "assistant_token_id")
        return super().generation_to_hf() | {key: getattr(self, key) for key in roles}

    def parameter_count(self) -> int:
        """Numbers in the weights.

        Per block: query, key, value and output 4 H^2, feed-forward 3 H F, two norms 2 H. Outside:
        the table and the head, 2 V H, and the last norm.
        """
        hidden = self.hidden_size
        block = 4 * hidden**2 + 3 * hidden * self.ffn_size + 2 * hidden
        return 2 * self.vocab_size * hidden + self.num_layers * block + hidden


def _preset(hidden_size: int, num_layers: int, num_heads: int, **fields: Any) -> Baichuan2Config:
    return Baichuan2Config(
        hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads, **fields
    )


_TINY: dict[str, Any] = {"intermediate_size": 176, "vocab_size": 1024, "seq_length": 128}

PRESETS: dict[str, Baichuan2Config] = {
    "baichuan2_7b": _preset(4096, 32, 32, intermediate_size=11008, max_position_embeddings=4096),
    "baichuan2_13b": _preset(5120, 40, 40, intermediate_size=13696, position_embedding="alibi"),
    "baichuan2_tiny": _preset(64, 2, 4, **_TINY),
    # A number of heads that is no power of two, as 13B has.
    "baichuan2_tiny_alibi": _preset(96, 2, 6, position_embedding="alibi", **_TINY),
}
"""By the names of the model card; Base and Chat are of the same sizes."""
