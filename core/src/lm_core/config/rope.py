"""How rotary position embeddings are stretched beyond the length that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from lm_core.config.section import Factor, Positive, Section
from lm_core.errors import ConfigError

KINDS = ("default", "linear", "dynamic", "ntk", "yarn", "llama3")
_ORIGINAL = "original_max_position_embeddings"
_HF_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _ORIGINAL, "beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
}
"""What Hugging Face knows of each kind; it warns of others."""


class RopeScaling(Section):
    """One of the ways that Hugging Face's `rope_scaling` names, and `ntk`.

    linear: positions are divided by the factor (position interpolation, Chen et al. 2023).
    ntk: the base is raised so that the slowest rotation slows down by the factor.
    dynamic: plain within the trained length; see `problems`.
    yarn: fast rotations stay, slow ones are interpolated (Peng et al. 2023).
    llama3: the same idea, by wave lengths, as Llama 3.1 does.
    """

    type: Literal["default", "linear", "dynamic", "ntk", "yarn", "llama3"] = "default"
    factor: Annotated[float, Field(ge=1.0)] = 1.0
    original_max_position_embeddings: Positive | None = None
    """The length that the model was trained with; yarn and llama3 need it."""
    low_freq_factor: Factor = 1.0
    high_freq_factor: Factor = 4.0
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    attention_factor: Factor | None = None
    """Factor on cosine and sine; yarn: 0.1 ln(factor) + 1 if not given."""

    @classmethod
    def from_hf(cls, values: Mapping[str, Any] | None) -> Self | None:
        """What `rope_scaling` or `rope_parameters` of a config.json says; None: nothing special.

        Raises:
            ConfigError: a kind that is not built, or values of a wrong type.
        """
        given = dict(values or {})
        given["type"] = given.pop("rope_type", given.get("type", "default"))
        given.pop("rope_theta", None)
        if given["type"] == "default":
            return None
        if given["type"] not in KINDS:
            raise ConfigError(
                f"rope_scaling.type: is {given['type']!r}; must be one of {', '.join(KINDS)}; "
                f"use another checkpoint"
            )
        try:
            return cls.parse(given)
        except ConfigError as error:
            raise ConfigError(*(f"rope_scaling.{line}" for line in error.problems)) from error

    def to_hf(self) -> dict[str, Any]:
        """The value of `rope_scaling`.

        Raises:
            ConfigError: Hugging Face has no such kind.
        """
        if self.type == "ntk":
            raise ConfigError(
                "rope_scaling.type: is ntk, which Hugging Face does not have; raise theta instead "
                "(theta * factor ** (D / (D - 2)) with extend_method: None is the same network)"
            )
        known = self.model_dump(include={*_HF_KEYS.get(self.type, ())}, exclude_none=True)
        return {"rope_type": self.type, **known}

    def problems(self, seq_length: int, trained: int) -> list[str]:
        """What does not fit the lengths of a model.

        Args:
            seq_length: the longest sequence wanted.
            trained: max_position_embeddings.
        """
        found = []
        if self.type == "dynamic" and seq_length > trained:
            found.append(
                f"rope_scaling.type: dynamic would turn the tokens already read again whenever a "
                f"text grows beyond {trained} tokens, so seq_length {seq_length} cannot be cached; "
                f"use type: ntk or linear with factor: {seq_length / trained:g}"
            )
        if self.type in ("yarn", "llama3") and self.original_max_position_embeddings is None:
            found.append(
                f"rope_scaling.original_max_position_embeddings: is missing; {self.type} needs the "
                f"length that the model was trained with; set it"
            )
        return found
