"""Turns a failed validation into one line per problem, in the words of the run file."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from lm_core.config.section import Described, OneOf, key_names, suggest
from lm_core.errors import LmError

KeyPath = tuple[str | int, ...]

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}
_SIGNS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))


def problems(
    error: ValidationError,
    section: type[BaseModel],
    values: Any,
    prefix: KeyPath = (),
    places: Mapping[str, str] | None = None,
) -> list[tuple[KeyPath, str]]:
    """All problems as (path of the key, text), each path once.

    Args:
        error: what pydantic found.
        section: the class that was validated.
        values: what it was validated against.
        prefix: the path of the section itself.
        places: key -> dotted path, to say where a misplaced key belongs.
    """
    found: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        path, field, owner = _locate(section, item["loc"])
        if isinstance(cause, LmError):
            for line in cause.problems:
                key, _, text = line.partition(": ")
                found.setdefault((*prefix, *path, key), text)
        elif item["type"] in ("extra_forbidden", "no_such_attribute"):
            found.setdefault(
                (*prefix, *path), f"unknown key; {_right_key(str(path[-1]), owner, places or {})}"
            )
        elif item["type"] == "missing":
            found.setdefault((*prefix, *path), f"is missing; must be {describe(field)}")
        else:
            hint = f"; {cause}" if cause is not None and str(cause) else ""
            value = dig(values, path, item["input"])
            text = f"is {show(value)}; must be {_wanted(field, path)}{hint}"
            found.setdefault((*prefix, *path), text)
    return list(found.items())


def _right_key(key: str, owner: type[BaseModel], places: Mapping[str, str]) -> str:
    known = key_names(owner)
    if key in places and not difflib.get_close_matches(key, known, n=1, cutoff=0.85):
        return f"did you mean {places[key]}?"
    return suggest(key, known)


def find_field(section: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The field at a path as written; None where there is none."""
    owners, field = [section], None
    for part in path:
        if isinstance(part, int):
            continue
        fields = [
            found
            for owner in owners
            for name, found in owner.model_fields.items()
            if part == (found.alias or name)
        ]
        if not fields:
            return None
        field = fields[0]
        owners = [found for _, found in _sections(field.annotation)]
    return field


def spell(path: KeyPath) -> str:
    """("callbacks", 1, "prefix") -> "callbacks[1].prefix"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def show(value: Any) -> str:
    """A value in one short line, with its kind where that is not plain to see: `"3" (text)`."""
    kinds = {str: " (text)", bool: " (true or false)", list: " (a list)", dict: " (a mapping)"}
    text = json.dumps(value, ensure_ascii=False, default=str)
    return (text if len(text) <= 60 else text[:57] + "...") + kinds.get(type(value), "")


def _wanted(field: FieldInfo | None, path: KeyPath) -> str:
    """What the value at a path must be: for a place in a list, what an item must be."""
    if field is not None and isinstance(path[-1], int) and get_origin(field.annotation) is list:
        return _describe(get_args(field.annotation)[0])
    return describe(field)


def describe(field: FieldInfo | None) -> str:
    """What a key takes, in words."""
    return "something else" if field is None else _describe(field.annotation, field.metadata)


def _describe(annotation: Any, metadata: Any = ()) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = [*inner, *metadata]
    words = next(
        (item.text for item in metadata if isinstance(item, Described | OneOf)), ""
    ) or _type_words(annotation)
    return words + _bounds(metadata)


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        parts = list(dict.fromkeys(_describe(argument) for argument in arguments))
        return " or ".join(parts)
    if origin is list:
        return f"a list, each {_describe(arguments[0])}"
    return "a mapping (key: value)"


def _bounds(metadata: Any) -> str:
    found = []
    for item in _flat(metadata):
        for kind, name, sign in _SIGNS:
            if isinstance(item, kind):
                found.append(f" {sign} {_number(getattr(item, name))}")
    return " and".join(found)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item


def _locate(
    section: type[BaseModel], loc: KeyPath
) -> tuple[KeyPath, FieldInfo | None, type[BaseModel]]:
    """The path as written, the field, and the section that has it.

    Pydantic's names of union branches are left out.
    """
    path: list[str | int] = []
    owner: type[BaseModel] | None = section
    field, choices = None, {}
    for part in loc:
        fields = (
            {found.alias or name: found for name, found in owner.model_fields.items()}
            if owner
            else {}
        )
        if part in fields:
            path.append(part)
            field = fields[part]
            choices = dict(_sections(field.annotation))
            owner = next(iter(choices.values())) if len(choices) == 1 else None
        elif owner is None and part in choices:
            owner = choices[part]
        elif owner is not None or choices:
            path.append(part)  # a place in a list of sections, or an unknown key
    return tuple(path), field, owner or section


def _sections(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """(tag or "", class) of each section that may stand for the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        tag = next((item.tag for item in arguments[1:] if isinstance(item, Tag)), "")
        for found, section in _sections(arguments[0]):
            yield tag or found, section
        return
    for argument in arguments:
        yield from _sections(argument)


def dig(values: Any, path: KeyPath, otherwise: Any = None) -> Any:
    """The value at a path; `otherwise` where there is none."""
    for part in path:
        if (
            isinstance(values, Mapping)
            and part in values
            or isinstance(values, list)
            and isinstance(part, int)
            and part < len(values)
        ):
            values = values[part]
        else:
            return otherwise
    return values
