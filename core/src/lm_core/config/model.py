"""What every language model has: sizes, precision, token ids, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lm_core.config.parallel import ParallelConfig
from lm_core.config.section import (
    NO_EFFECT,
    Factor,
    NonNegative,
    OneOf,
    Positive,
    Probability,
    Section,
    suggest,
)
from lm_core.errors import ConfigError

FloatType = Literal["float32", "float16", "bfloat16"]
Task = Annotated[
    str,
    OneOf(
        {
            "text_generation": ("CausalLanguageModelingTrainer",),
            "text_classification": ("TextClassificationTrainer",),
        }
    ),
]
IGNORED = -100
"""The label of a position that is not trained."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "eod_token_id")


class LoraConfig(Section):
    """Adapters of low rank beside linear layers that are frozen: LoRA (Hu et al. 2021)."""

    pet_type: Annotated[str, OneOf({"lora": ("LORA",)})] = "lora"
    lora_rank: Positive = 8
    lora_alpha: Factor = 16.0
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: Probability = 0.01
    """Rate on the adapter's input."""
    lora_a_init: Annotated[str, OneOf({"normal": ("he_uniform", "kaiming_uniform")})] = "normal"
    lora_b_init: Annotated[str, OneOf({"zero": ("zeros",)})] = "zero"
    target_modules: str | list[str] | None = None
    """A regular expression for whole layer names, or a list of names or of their ends."""
    exclude_layers: str | list[str] | None = None
    """Layers to leave out, written in the same way."""
    freeze_include: list[str] | None = None
    """Parameters (`*` is any text) that stay as they are although they would be trained."""
    freeze_exclude: list[str] | None = None
    """Parameters that are trained beside the adapter."""
    param_init_type: FloatType = "float32"
    compute_dtype: FloatType = "float32"

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.lora_alpha / self.lora_rank


class ModelConfig(Section):
    """A network's architecture and how it generates by default. Packages add their own fields."""

    architectures: ClassVar[Mapping[str, str]] = {}
    """Names that `model.arch.type` may have -> the task they are for."""
    implied: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Names that `model.arch.type` may have -> fields that it decides where a run does not."""
    types_of_others: ClassVar[frozenset[str]] = frozenset()
    """Values of `type` that are of another model, so that they do not make a run one of this."""
    normalised_head: ClassVar[bool] = False
    """Whether logits are products with the directions of the head's columns; such a head cannot
    have an adapter, which could not be merged."""
    other_names: ClassVar[Mapping[str, str]] = {}
    """What run files of others call a field -> the field."""
    seen_in_shapes: ClassVar[frozenset[str]] = frozenset()
    """Fields that decide nothing but shapes of weights, so wrong ones cannot go unnoticed."""
    computes_positions: ClassVar[bool] = False
    """Whether positions are computed (rotary) and in no weight, so that `seq_length` is free. Such
    a model has a field `max_position_embeddings`, the length that it was trained with."""

    type: str = ""
    task: Task = "text_generation"
    """Decides the head: one that predicts tokens, or one that tells classes of texts apart."""
    num_labels: Positive = 2
    """Classes of text classification; of PromptAccMetric, the prompts of each record."""
    label_names: list[str] | None = None
    """What the classes are called, from class 0 on."""
    vocab_size: Positive
    hidden_size: Positive
    num_layers: Positive
    num_heads: Positive
    seq_length: Positive
    """Tokens of the longest sequence, and the capacity of the key-value cache."""
    initializer_range: Factor = 0.02

    param_init_type: FloatType = "float32"
    compute_dtype: FloatType = "float32"
    softmax_compute_type: FloatType = "float32"
    layernorm_compute_type: FloatType = "float32"
    use_flash_attention: bool = False
    use_past: bool = True
    """Keep keys and values of earlier tokens while generating."""

    bos_token_id: NonNegative | None = None
    eos_token_id: NonNegative | list[NonNegative] | None = None
    pad_token_id: NonNegative | None = None
    unk_token_id: NonNegative | None = None
    eod_token_id: NonNegative | None = None
    """What `eod_reset` of a data section takes for the end of a document; None: eos_token_id."""
    ignore_token_id: int = IGNORED

    do_sample: bool = False
    top_k: NonNegative = 50
    """0 keeps all tokens."""
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    temperature: Factor = 1.0
    repetition_penalty: Factor = 1.0
    num_beams: Positive = 1
    max_decode_length: Positive | None = None
    max_length: Positive | None = None
    max_new_tokens: Positive | None = None

    checkpoint_name_or_path: Annotated[
        str, BeforeValidator(lambda value: "" if value is None else value)
    ] = ""
    pet_config: LoraConfig | None = None
    parallel_config: ParallelConfig = ParallelConfig()

    batch_size: Positive = 1
    """Rows of an exported graph; those of a training step are `runner_config.batch_size`."""
    offset: Annotated[int | list[int], NO_EFFECT] = 0
    use_moe: Annotated[bool, NO_EFFECT] = False
    expert_num: Annotated[Positive, NO_EFFECT] = 1
    per_token_num_experts_chosen: Annotated[Positive, NO_EFFECT] = 1
    is_dynamic: bool = False
    """Export one graph of open sizes."""
    is_flexible_shape: Annotated[bool, NO_EFFECT] = False
    is_sample_acceleration: Annotated[bool, NO_EFFECT] = False
    use_kvcache_op: Annotated[bool, NO_EFFECT] = False
    use_paged_attention: Annotated[bool, NO_EFFECT] = False
    use_prompt_flash_attention: Annotated[bool, NO_EFFECT] = False
    block_size: Annotated[Positive, NO_EFFECT] = 16
    num_blocks: Annotated[Positive, NO_EFFECT] = 512

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        return cls.renamed(values) if isinstance(values, Mapping) else values

    @classmethod
    def renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the names of fields. Where a field is given twice, that is left as it is."""
        return {
            name if (name := cls.other_names.get(key, key)) == key or name not in values else key: v
            for key, v in values.items()
        }

    def model_post_init(self, context: Any, /) -> None:
        """Checks at construction what no single field shows."""
        found = self.problems()
        if found:
            raise ConfigError(*found)

    def problems(self) -> list[str]:
        """What is wrong between the fields, as `key: what; what to change` lines."""
        found = []
        if self.hidden_size % self.num_heads and not self.has_own_head_dim:
            divisors = [
                n for n in range(1, min(self.hidden_size, 1024) + 1) if self.hidden_size % n == 0
            ]
            found.append(
                f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}; "
                f"use one of {', '.join(map(str, divisors))}"
            )
        for key in _TOKENS:
            value = getattr(self, key)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and token >= self.vocab_size:
                    found.append(
                        f"{key}: {token} is outside the vocabulary of {self.vocab_size}; "
                        f"use a token id from 0 to {self.vocab_size - 1}"
                    )
        found += self._head_problems()
        if self.use_moe or self.expert_num > 1:
            found.append(
                "use_moe: mixtures of experts are not built; set use_moe: False and expert_num: 1"
            )
        return found

    def _head_problems(self) -> list[str]:
        found = []
        tasks = {"text_generation", *self.architectures.values()}
        if self.task not in tasks:
            found.append(f"task: {self.task} is not built for this model; {suggest('', tasks)}")
        elif self.is_classifier and self.num_labels < 2:
            found.append("num_labels: 1 leaves nothing to tell apart; use at least 2")
        if self.label_names is not None and len(self.label_names) != self.num_labels:
            found.append(
                f"label_names: are {len(self.label_names)} and num_labels is {self.num_labels}; "
                f"must be as many; change one of the two"
            )
        return found

    @property
    def is_classifier(self) -> bool:
        """Whether the head tells classes of texts apart."""
        return self.task == "text_classification"

    @property
    def class_names(self) -> list[str]:
        """A name for each class: its own, or the one that Hugging Face gives it."""
        return self.label_names or [f"LABEL_{number}" for number in range(self.num_labels)]

    @property
    def has_own_head_dim(self) -> bool:
        """Whether the size of a head is a field of its own, free of hidden_size / num_heads."""
        return False

    @property
    def head_dim(self) -> int:
        """D, the size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, heads of keys and values; fewer than `num_heads` where heads share them."""
        return self.num_heads

    @property
    def positions(self) -> int:
        """How many positions the network can tell apart."""
        return self.seq_length

    @property
    def trained_positions(self) -> int:
        """The length that the model was trained with."""
        return self.seq_length

    def widened(self, tokens: int) -> Self:
        """With room for sequences of so many tokens, where no weight fixes their length."""
        if tokens <= self.seq_length or not self.computes_positions:
            return self
        return self.copy(seq_length=tokens, max_position_embeddings=self.trained_positions)

    @property
    def eos_token_ids(self) -> list[int]:
        """All ids that end a text; empty when there is none."""
        value = self.eos_token_id
        if value is None:
            return []
        return value if isinstance(value, list) else [value]

    def named_like(self, other: ModelConfig) -> Self:
        """With the names that another classifier gives its classes, where this one has none."""
        alike = self.is_classifier and other.is_classifier and self.num_labels == other.num_labels
        if not alike or self.label_names is not None or other.label_names is None:
            return self
        return self.copy(label_names=other.label_names)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a Hugging Face config.json describes.

        Raises:
            ConfigError: options that this network is not built for, by name.
        """
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face config.json."""
        raise NotImplementedError

    @classmethod
    def head_from_hf(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The task, and its classes, of a Hugging Face config.json; a package's `from_hf` uses it.

        Raises:
            ConfigError: the classes are no numbered names.
        """
        names = values.get("architectures") or [""]
        if cls.architectures.get(names[0]) != "text_classification":
            return {}
        found = {"task": "text_classification", "num_labels": values.get("num_labels", 2)}
        labels = values.get("id2label")
        if labels is None:
            return found
        try:
            given = [str(labels[key]) for key in sorted(labels, key=int)]
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f'id2label: is {labels!r}; must be {{"0": NAME, "1": NAME}}; use another checkpoint'
            ) from error
        found["num_labels"] = len(given)
        if given != [f"LABEL_{number}" for number in range(len(given))]:
            found["label_names"] = given
        return found

    def head_to_hf(self) -> dict[str, Any]:
        """What `head_from_hf` reads; a package's `to_hf` uses it."""
        found = {
            "architectures": [
                next(name for name, task in self.architectures.items() if task == self.task)
            ]
        }
        if not self.is_classifier:
            return found
        names = dict(enumerate(self.class_names))
        return {
            **found,
            "id2label": {str(number): name for number, name in names.items()},
            "label2id": {name: number for number, name in names.items()},
        }

    def generation_to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face generation_config.json.

        What is for sampling is left out where the most likely token is taken: it decides nothing,
        and transformers does not save models that say it.
        """
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        found = {key: getattr(self, key) for key in tokens if getattr(self, key) is not None}
        found["do_sample"] = self.do_sample
        if self.do_sample:
            found |= {key: getattr(self, key) for key in ("top_k", "top_p", "temperature")}
        for key in ("repetition_penalty", "num_beams"):
            if getattr(self, key) != 1:
                found[key] = getattr(self, key)
        lengths = {"max_length": self.max_length or self.max_decode_length}
        lengths["max_new_tokens"] = self.max_new_tokens
        return found | {key: value for key, value in lengths.items() if value is not None}

    def parameter_count(self) -> int:
        """The number of trained numbers, without building the network."""
        raise NotImplementedError

    def copy(self, update: Mapping[str, Any] | None = None, **changes: Any) -> Self:
        """A checked copy with some fields changed.

        Raises:
            ConfigError: an unknown field, a wrong type, or fields that do not fit together.
        """
        return self.parse({**self.explicit(), **(update or {}), **changes})

    def explicit(self) -> dict[str, Any]:
        """What was given, without defaults: some follow other fields, and will do so again."""
        return self.model_dump(include=set(self.keys()))


class GatedSizes(ModelConfig):
    """Llama's way to say how wide the feed-forward layer is; its relatives have it, too."""

    intermediate_size: Positive | None = None
    """Width of the feed-forward layer; otherwise from the two fields that follow."""
    multiple_of: Positive = 256
    ffn_dim_multiplier: Factor | None = None

    @property
    def ffn_size(self) -> int:
        """F, from the sizes as Meta counts it: two thirds of 4 H, rounded up to `multiple_of`."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        inner = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            inner = int((self.ffn_dim_multiplier + 0.01) * inner)
        inner = int(2 * inner / 3)
        return -(-inner // self.multiple_of) * self.multiple_of
