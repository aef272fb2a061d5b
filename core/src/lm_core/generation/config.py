"""How to generate: lengths, sampling, beams, where to stop.

Wrong settings are reported all together; an unknown one names the nearest that is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

from lm_core.config.section import suggest
from lm_core.errors import GenerationError

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig

DEFAULT_NEW_TOKENS = 20
"""New tokens per prompt where neither the call nor the model says how many."""

_FROM_MODEL = (
    "do_sample", "top_k", "top_p", "temperature", "repetition_penalty", "num_beams", "use_past",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class GenerationConfig:
    """Settings of one call of `generate`.

    `generate(ids, top_k=3)` starts from the model's own settings (`from_model`) and changes one; a
    `GenerationConfig` given to `generate` replaces them all, except those that are None.

    Raises:
        GenerationError: every wrong value, one line each.
    """

    max_length: int | None = None
    """Longest prompt + answer. With `max_new_tokens`, whichever is reached first."""
    max_new_tokens: int | None = None
    """Longest answer, the same for each prompt of a batch."""
    do_sample: bool = False
    """Draw from the distribution; otherwise the most likely token. Any true value will do."""
    top_k: int = 50
    """Draw among this many most likely tokens, of equal ones the lower id first; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest most likely tokens that together have this probability; 0: one."""
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that prompt or answer hold."""
    num_beams: int = 1
    length_penalty: float = 1.0
    """A beam's score is its log-probability / length ** length_penalty."""
    early_stopping: bool | str = False
    """When to stop: True: at `num_beams` finished beams, False: when a better one is unlikely,
    "never": when it is impossible."""
    eos_token_id: int | Sequence[int] | None = None
    """Tokens that end an answer (and stay in it); None: the model's; []: only the length does."""
    pad_token_id: int | None = None
    """What fills up the rows of a rectangular `input_ids`; None for the model's."""
    seed: int | None = None
    """The same seed gives the same draws; None gives new ones each time."""
    use_past: bool = True
    """Keep keys and values of earlier tokens; or else each token costs a pass over them all."""
    truncation: bool | str = False
    """"left" drops the beginning of a prompt that is too long; False reports it."""

    def __post_init__(self) -> None:
        self.do_sample, self.use_past = bool(self.do_sample), bool(self.use_past)
        found = [
            f"{name}: {getattr(self, name)!r}; must be {wanted}"
            for name, allowed, wanted in _RULES
            if not allowed(getattr(self, name))
        ]
        if self.do_sample and _real(self.temperature) and self.temperature == 0:
            found.append(
                f"temperature: {self.temperature}; must be above 0 to sample; "
                f"for the most likely token set do_sample=False"
            )
        if self.do_sample and _whole(self.num_beams, 2):
            found.append(
                f"num_beams: {self.num_beams} with do_sample=True; beams do not sample; drop either"
            )
        if found:
            raise GenerationError(*found)

    @classmethod
    def from_model(cls, config: ModelConfig, **options: Any) -> Self:
        """The model's own settings, with `options` instead of them where given."""
        own = {name: getattr(config, name) for name in _FROM_MODEL}
        return cls(**own).replace(**options)

    def replace(self, **options: Any) -> Self:
        """A copy with other settings; options that are None change nothing.

        A length given here replaces both earlier ones: an earlier `max_new_tokens` does not cut
        `max_length=20` short.

        Raises:
            GenerationError: unknown names and wrong values.
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = [
            f"{name}: unknown generation setting; {suggest(name, known)}"
            for name in options
            if name not in known
        ]
        if unknown:
            raise GenerationError(*unknown)
        given = {name: value for name, value in options.items() if value is not None}
        if "max_length" in given or "max_new_tokens" in given:
            given = {"max_length": None, "max_new_tokens": None, **given}
        return dataclasses.replace(self, **given)

    def completed(self, config: ModelConfig) -> Self:
        """A copy in which the model's lengths and token ids stand where there was None.

        Raises:
            GenerationError: a token id outside the vocabulary.
        """
        own: dict[str, Any] = {}
        if self.max_length is None and self.max_new_tokens is None:
            own["max_length"] = config.max_length or config.max_decode_length
            own["max_new_tokens"] = config.max_new_tokens
            if not any(own.values()):
                own["max_new_tokens"] = DEFAULT_NEW_TOKENS
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                own[name] = getattr(config, name)
        done = dataclasses.replace(self, **own)
        done._check_ids(config.vocab_size)
        return done

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        value = self.eos_token_id
        if value is None:
            return ()
        return (
            tuple(int(token) for token in value) if isinstance(value, Iterable) else (int(value),)
        )

    def _check_ids(self, vocab_size: int) -> None:
        pad = () if self.pad_token_id is None else (self.pad_token_id,)
        found = [
            f"{name}: {token} is outside the vocabulary of {vocab_size}; use ids from 0 to "
            f"{vocab_size - 1}" + (", or [] to never stop" if name == "eos_token_id" else "")
            for name, tokens in (("eos_token_id", self.eos_ids), ("pad_token_id", pad))
            for token in tokens
            if not 0 <= token < vocab_size
        ]
        if found:
            raise GenerationError(*found)


def _whole(value: Any, least: float) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _ids(value: Any) -> bool:
    """Whether these are ids at all; `completed` knows the vocabulary."""
    if value is None or _whole(value, -math.inf):
        return True
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    return listed and all(_whole(token, -math.inf) for token in value)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "max_length",
        lambda v: v is None or _whole(v, 1),
        "a whole number from 1 (tokens of prompt + answer)",
    ),
    (
        "max_new_tokens",
        lambda v: v is None or _whole(v, 1),
        "a whole number from 1 (tokens of the answer)",
    ),
    ("top_k", lambda v: _whole(v, 0), "a whole number from 0 (0 keeps all tokens)"),
    ("top_p", lambda v: _real(v) and 0 <= v <= 1, "a number from 0 to 1 (1 keeps all tokens)"),
    ("temperature", lambda v: _real(v) and v >= 0, "a number above 0"),
    ("repetition_penalty", lambda v: _real(v) and v > 0, "a number above 0 (1 for no penalty)"),
    ("num_beams", lambda v: _whole(v, 1), "a whole number from 1 (1 for no beam search)"),
    ("length_penalty", _real, "a number (above 0 prefers long answers)"),
    ("early_stopping", lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"'),
    ("eos_token_id", _ids, "a token id, a list of them, or [] to never stop"),
    ("pad_token_id", lambda v: v is None or _whole(v, -math.inf), "a token id"),
    (
        "seed",
        lambda v: v is None or _whole(v, 0),
        "a whole number from 0, or None for new draws each time",
    ),
    ("truncation", lambda v: v is False or v == "left", 'False or "left"'),
)
