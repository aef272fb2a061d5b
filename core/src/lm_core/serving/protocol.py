"""What clients may ask: the requests of OpenAI's API, as far as they can be met.

Nothing is accepted and ignored. What the API has and this server has not may be sent with the value
that means "without" (`presence_penalty: 0`); any other value, and any field that is not here, is
refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from lm_core.config.section import Described, Positive, Section
from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig

MOST_STOPS, LONGEST_STOP = 4, 200
MOST_CHOICES = 64
MOST_BEST = 20


def _joined(content: Any) -> Any:
    """The text of a message that is given in parts of text; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = [
        part["text"]
        for part in content
        if isinstance(part, dict)
        and set(part) == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    ]
    return "".join(texts) if len(texts) == len(content) else content


Stop = Annotated[
    str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None,
    Described(f"a text or a list of up to {MOST_STOPS} texts"),
]
Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]],
    Described("a text, a list of texts, a list of token ids, or a list of such lists"),
]
Content = Annotated[
    str,
    BeforeValidator(_joined),
    Described('text, or a list of {"type": "text", "text": TEXT}'),
]


class StreamOptions(Section):
    """How a stream ends."""

    include_usage: bool = False


class Asked(Section):
    """What both kinds of requests have.

    `top_k` and `repetition_penalty` are not OpenAI's: pass them as `extra_body`. A setting that is
    not given is the server's own, which is the model's unless the server was told otherwise.
    """

    without: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
    }
    """Fields of the API that are not supported, and the values at which they ask for nothing."""
    few: ClassVar[int | None] = None
    """Longest answer where nothing is said; None: as long as fits."""

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted, as it changes no answer."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The request that these values are.

        Raises:
            ConfigError: every field that is wrong or unknown, one line each.
            GenerationError: every field that cannot be met, one line each.
        """
        refused = [
            f"{name}: is {values[name]!r:.60}; must be {neutral[0]!r}, as this server has none; "
            f"{_instead(name)}"
            for name, neutral in cls.without.items()
            if values.get(name) is not None and values[name] not in neutral
        ]
        if refused:
            raise GenerationError(*refused)
        found = cls.parse({name: values[name] for name in values if name not in cls.without})
        found.check()
        return found

    def check(self) -> None:
        """Looks at what several fields say together.

        Raises:
            GenerationError: every problem, one line each.
        """
        problems = [
            f"stop[{place}]: has {len(text)} characters; must have 1 to {LONGEST_STOP}; change it"
            for place, text in enumerate(self.stops)
            if not 1 <= len(text) <= LONGEST_STOP
        ]
        if self.stream_options is not None and not self.stream:
            problems.append("stream_options: is given without stream; set stream: true")
        if problems:
            raise GenerationError(*problems)

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def asked_tokens(self) -> int | None:
        """Longest answer that is asked for; None: nothing was said."""
        raise NotImplementedError

    @property
    def best(self) -> int | None:
        """How many of the most likely tokens to name at each place; None: no chances at all."""
        raise NotImplementedError

    def settings(self, own: GenerationConfig, most: int | None) -> GenerationConfig:
        """How to generate.

        Args:
            own: the server's settings.
            most: tokens of an answer that this server gives at most, None for all that fit.

        Raises:
            GenerationError: settings that cannot be.
        """
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("top_p", "top_k", "repetition_penalty", "seed")
            if getattr(self, name) is not None
        }
        if self.temperature is not None:
            options["do_sample"] = self.temperature > 0
            if self.temperature > 0:
                options["temperature"] = self.temperature
        elif self.top_p is not None or self.top_k is not None:
            options["do_sample"] = True
        asked = self.asked_tokens
        if most is not None and asked is not None and asked > most:
            raise GenerationError(
                f"max_tokens: is {asked}; must be at most {most} on this server; lower it"
            )
        lengths = [n for n in (asked or self.few, most) if n is not None]
        shortest = min(lengths) if lengths else None
        return replace(own.replace(**options), max_new_tokens=shortest)


def _instead(name: str) -> str:
    return "use repetition_penalty" if name.endswith("_penalty") else "leave it out"


class CompletionAsked(Asked):
    """A request to /v1/completions: texts, or ids of tokens, to continue."""

    without: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Asked.without,
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }
    few: ClassVar[int | None] = 16  # as OpenAI says

    prompt: Prompt
    max_tokens: Positive | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_BEST)] | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt: a text or ids."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]  # type: ignore[list-item]
        return given  # type: ignore[return-value]

    @property
    def asked_tokens(self) -> int | None:
        """As `Asked.asked_tokens`."""
        return self.max_tokens

    @property
    def best(self) -> int | None:
        """As `Asked.best`."""
        return self.logprobs

    def check(self) -> None:
        """As `Asked.check`; there must be something to continue."""
        super().check()
        if not self.prompts:
            raise GenerationError("prompt: is an empty list; must hold a prompt; add one")
        count = len(self.prompts) * (self.n or 1)
        if count > MOST_CHOICES:
            raise GenerationError(
                f"prompt: {len(self.prompts)} prompts with n={self.n or 1} make {count} answers; "
                f"must be at most {MOST_CHOICES}; send several requests"
            )


class Said(Section):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


class ChatAsked(Asked):
    """A request to /v1/chat/completions: a conversation that ends with a question."""

    without: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Asked.without,
        "tools": ([],),
        "tool_choice": ("none",),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "metadata": ({},),
    }

    messages: Annotated[
        list[Said], Field(min_length=1), Described("a list of messages with role and content")
    ]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_BEST)] | None = None

    @property
    def asked_tokens(self) -> int | None:
        """As `Asked.asked_tokens`; the shorter where both names of it are given."""
        given = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(given) if given else None

    @property
    def best(self) -> int | None:
        """As `Asked.best`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """As `Asked.check`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise GenerationError("top_logprobs: is given without logprobs; set logprobs: true")
