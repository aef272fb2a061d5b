"""The base of every configuration section: strict types, known keys, one-line errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from lm_core.errors import ConfigError


class Section(BaseModel):
    """A mapping of a run file. Attributes may be assigned later and are checked then, too."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        validate_assignment=True,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    def __init__(self, /, **values: Any) -> None:
        """Raises ConfigError, not pydantic's own error, when constructed directly."""
        __tracebackhide__ = True
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_config_error(error, type(self), values) from None

    # Tells pydantic that this is no custom initialiser: nested sections are then validated in one
    # pass, with all problems of the whole tree in one error.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise _as_config_error(error, type(self), {name: value}) from None
        except ValueError as error:
            if name in type(self).model_fields:
                raise
            raise ConfigError(
                f"{name}: unknown key; {suggest(name, key_names(type(self)))}"
            ) from error

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The section that `values` describe.

        Raises:
            ConfigError: every problem, each line starting with the path of its key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _as_config_error(error, cls, values) from None

    def is_set(self, key: str) -> bool:
        """Whether somebody gave the value, as opposed to the default."""
        return key in self.model_fields_set

    def keys(self) -> list[str]:
        """What was given, and sections, so that `Kind(**section)` is a copy.

        Defaults are left out: some follow other fields, and will do so again.
        """
        return [name for name, value in self if self.is_set(name) or isinstance(value, Section)]

    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)


def _as_config_error(error: ValidationError, section: type[Section], values: Any) -> ConfigError:
    from lm_core.config.explain import problems, spell

    return ConfigError(
        *(f"{spell(path)}: {text}" for path, text in problems(error, section, values))
    )


@dataclass(frozen=True, slots=True)
class Described:
    """What a value must be, in words, where its type alone does not say it."""

    text: str


class NoEffect:
    """Marks a key of the model cards that is read and not needed."""


NO_EFFECT = NoEffect()

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Factor = Annotated[float, Field(gt=0.0)]


class OneOf:
    """Marks a key that takes one of a few names, each with others that mean the same.

    `Annotated[str, OneOf({"adamw": ("AdamW",), "sgd": ()})]`: the value is the canonical name.
    """

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        """Takes canonical name -> the other names."""
        self.names = {name: tuple(aliases) for name, aliases in names.items()}
        self.table = {
            alias: name for name, aliases in self.names.items() for alias in (name, *aliases)
        }

    @property
    def text(self) -> str:
        """What a value must be, in words."""
        words = (
            f"{name} ({', '.join(more)})" if more else name for name, more in self.names.items()
        )
        return f"one of {', '.join(words)}"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.resolve, handler(source))

    def resolve(self, value: Any) -> str:
        """The canonical name; ValueError with a suggestion for what is none."""
        if not isinstance(value, str) or value not in self.table:
            near = difflib.get_close_matches(str(value), self.table, n=1)
            raise ValueError(f"did you mean {near[0]}?" if near else "")
        return self.table[value]


def key_names(section: type[BaseModel]) -> list[str]:
    """The keys of a section as users write them."""
    own = [field.alias or name for name, field in section.model_fields.items()]
    return [*own, *getattr(section, "other_names", ())]


def suggest(key: str, known: Iterable[str]) -> str:
    """Either "did you mean X?", or the keys there are when nothing comes near."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    lowered = {name.lower(): name for name in known}
    if key.lower() in lowered:
        return f"did you mean {lowered[key.lower()]}?"
    return f"known here: {', '.join([*known[:12], '...'] if len(known) > 15 else known)}"
