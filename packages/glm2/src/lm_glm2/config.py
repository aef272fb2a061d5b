"""Sizes of ChatGLM2 (THUDM 2023; GLM: Du et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from lm_core.config.model import ModelConfig
from lm_core.config.rope import RopeScaling
from lm_core.config.section import NO_EFFECT, NonNegative, Positive, Probability
from lm_core.errors import ConfigError

# Fields that a published config.json spells as run files do, and what one that lacks them means.
_HF_FIELDS: dict[str, Any] = {
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 2048,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "apply_query_key_layer_scaling": True,
    "attention_softmax_in_fp32": True,
    "fp32_residual_connection": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Keys that change the network, and the only value of each that this network computes.
_HF_ONLY: dict[str, Any] = {
    "tie_word_embeddings": False,
    "original_rope": True,
    "quantization_bit": 0,
    "quantization_config": None,
    "pre_seq_len": None,
}


class ChatGlm2Config(ModelConfig):
    """The fields of a ChatGLM2 (defaults: ChatGLM2-6B)."""

    architectures: ClassVar[Mapping[str, str]] = {
        # The first one is what published files say.
        "ChatGLMModel": "text_generation",
        "ChatGLMForConditionalGeneration": "text_generation",
        "ChatGLM2ForConditionalGeneration": "text_generation",
        "ChatGLM2WithLora": "text_generation",
        "ChatGLM2Model": "text_generation",
    }

    other_names: ClassVar[Mapping[str, str]] = {
        "padded_vocab_size": "vocab_size",
        "num_attention_heads": "num_heads",
        "ffn_hidden_size": "intermediate_size",
    }
    computes_positions: ClassVar[bool] = True
    seen_in_shapes: ClassVar[frozenset[str]] = frozenset(
        {"intermediate_size", "kv_channels", "multi_query_group_num", "add_qkv_bias"}
        | {"add_bias_linear", "rmsnorm", "post_layer_norm"}
    )

    type: Literal["ChatGLM2Config", "ChatGlm2Config"] = "ChatGLM2Config"
    vocab_size: Positive = 65024
    """Rows of the table: more than the tokenizer has tokens."""
    hidden_size: Positive = 4096
    num_layers: Positive = 28
    num_heads: Positive = 32
    kv_channels: Positive | None = None
    """Size of a head; hidden_size / num_attention_heads when it is not given."""
    multi_query_attention: bool = True
    multi_query_group_num: Positive = 2
    """Heads of keys and values, with multi_query_attention."""
    intermediate_size: Positive = 13696
    seq_length: Positive = 2048
    max_position_embeddings: Positive | None = None
    """The length that the model was trained with; `seq_length` when it is not given."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5
    rmsnorm: bool = True
    """False: norms subtract the mean, and have biases."""
    post_layer_norm: bool = True
    """Normalise what the last block gives."""
    apply_residual_connection_post_layernorm: bool = False
    """Add the normalised input, not the input, to each branch's output."""
    add_bias_linear: bool = False
    """All linear layers of the blocks have biases."""
    add_qkv_bias: bool = True
    hidden_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    attention_softmax_in_fp32: bool = True
    apply_query_key_layer_scaling: bool = True
    """The softmax is computed in float32, as with attention_softmax_in_fp32. That scores are
    divided by the number of the layer and multiplied again is left out."""
    fp32_residual_connection: bool = False
    """Between the blocks numbers are float32, whatever compute_dtype is."""

    rope_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    """Factor on the base of the rotary angles, 10000."""
    rope_scaling: RopeScaling | None = None

    bos_token_id: NonNegative | None = 1
    eos_token_id: NonNegative | list[NonNegative] | None = 2
    pad_token_id: NonNegative | None = 0
    unk_token_id: NonNegative | None = 0

    quantization_bit: Literal[0] = 0
    pre_seq_len: None = None
    """P-tuning is not built."""
    prefix_projection: Annotated[bool, NO_EFFECT] = False
    bias_dropout_fusion: Annotated[bool, NO_EFFECT] = True
    rotary_dtype: Annotated[str, NO_EFFECT] = "float32"
    use_rearrange_rope: Annotated[bool, NO_EFFECT] = False
    mask_generate: Annotated[str | None, NO_EFFECT] = None

    @field_validator("pre_seq_len", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """Run files of MindFormers write "None", a text."""
        return None if value == "None" else value

    def problems(self) -> list[str]:
        found = super().problems()
        if self.num_heads % self.kv_heads:
            usable = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            found.append(
                f"multi_query_group_num: {self.kv_heads} does not divide num_attention_heads "
                f"{self.num_heads}; use one of {', '.join(map(str, usable))}"
            )
        if self.head_dim % 4:
            found.append(
                f"kv_channels: {self.head_dim} numbers a head cannot rotate the first half in "
                f"pairs; must be a multiple of 4; change it"
            )
        if self.rope_scaling is not None:
            found += self.rope_scaling.problems(self.seq_length, self.trained_positions)
        return found

    @property
    def has_own_head_dim(self) -> bool:
        return self.kv_channels is not None

    @property
    def head_dim(self) -> int:
        """D."""
        return self.kv_channels or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, heads of keys and values."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_heads

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head rotate, from the first on."""
        return self.head_dim // 2

    @property
    def trained_positions(self) -> int:
        """The length that the model was trained with."""
        return self.max_position_embeddings or self.seq_length

    @property
    def theta(self) -> float:
        """Base of the rotary angles."""
        return 10000.0 * self.rope_ratio

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.add_bias_linear or self.add_qkv_bias

    @property
    def softmax_type(self) -> str:
        """The type that attention's softmax is computed in."""
        in_float32 = self.attention_softmax_in_fp32 or self.apply_query_key_layer_scaling
        return "float32" if in_float32 else self.softmax_compute_type

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a published config.json describes.

        Raises:
            ConfigError: options that change the network in a way it is not built for, by name, and
                values of a wrong type.
        """
        found = [
            f"{key}: is {values[key]!r}; ChatGLM2 is built for {only!r} only; use another "
            f"checkpoint"
            for key, only in _HF_ONLY.items()
            if key in values and values[key] != only
        ]
        # ChatGLM2-6B-32K divides positions by it, ChatGLM3 multiplies the base; files look alike.
        ratio = values.get("rope_ratio", 1)
        if ratio != 1:
            found.append(
                f"rope_ratio: is {ratio!r}, which models of this type use in two ways; write "
                f'"rope_scaling": {{"type": "linear", "factor": {ratio}}} into config.json instead '
                f"if positions are divided by it (ChatGLM2-6B-32K); models that multiply the base "
                f"by it (ChatGLM3) are not built"
            )
        fields = {key: values.get(key, start) for key, start in _HF_FIELDS.items()}
        try:
            fields["rope_scaling"] = RopeScaling.from_hf(values.get("rope_scaling"))
        except ConfigError as error:
            found += error.problems
        if found:
            raise ConfigError(*found)
        return cls.parse({**fields, **cls.head_from_hf(values)})

    def to_hf(self) -> dict[str, Any]:
        """The contents of a published config.json.

        Raises:
            ConfigError: this network is none that the published program can compute.
        """
        if self.rope_ratio != 1.0:
            raise ConfigError(
                f"rope_ratio: is {self.rope_ratio:g}, which the published program does not have; "
                f"the weights can be written as native or mindformers only"
            )
        values = {
            "model_type": "chatglm",
            **self.head_to_hf(),
            "auto_map": {
                "AutoConfig": "configuration_chatglm.ChatGLMConfig",
                "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
                "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
                "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
                "AutoModelForSequenceClassification": (
                    "modeling_chatglm.ChatGLMForSequenceClassification"
                ),
            },
            **{key: getattr(self, self.other_names.get(key, key)) for key in _HF_FIELDS},
            "kv_channels": self.head_dim,
            "bias_dropout_fusion": True,
            "original_rope": True,
            "tie_word_embeddings": False,
            "use_cache": True,
            "torch_dtype": self.param_init_type,
        }
        if self.rope_scaling is not None:
            values["rope_scaling"] = self.rope_scaling.to_hf()
        return values

    def parameter_count(self) -> int:
        """Numbers in the weights.

        Per block: query and output 2 H N D, key and value 2 H G D, feed-forward 3 H F, two norms;
        biases of query, key and value (N + 2 G) D, of the others H + 2 F + H. Outside: the table
        and the head, 2 V H, and the last norm.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, keys = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
        norm = hidden if self.rmsnorm else 2 * hidden
        block = 2 * hidden * (heads + keys) + 3 * hidden * inner + 2 * norm
        block += (heads + 2 * keys) * self.qkv_bias
        block += 2 * (hidden + inner) * self.add_bias_linear
        return 2 * self.vocab_size * hidden + self.num_layers * block + norm * self.post_layer_norm


PRESETS: dict[str, ChatGlm2Config] = {
    "glm2_6b": ChatGlm2Config(kv_channels=128, seq_length=2048),
    # Each of its two heads of keys and values is shared by two heads of queries.
    "glm2_tiny": ChatGlm2Config(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        kv_channels=16,
        intermediate_size=176,
        vocab_size=2048,
        seq_length=193,
    ),
}
"""By the names of the model card."""
