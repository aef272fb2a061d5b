"""Reads YAML into plain values and remembers the line of every key.

Differences from PyYAML's safe loader: `1e-5` is a number (YAML 1.2), dates and `12:30` are text,
`010` is ten, and a key that is written twice is an error instead of a silent overwrite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_core.config.explain import KeyPath, spell
from lm_core.errors import ConfigError

MAX_NODES = 100_000
"""Aliases of aliases could otherwise grow a few lines into more nodes than memory holds."""

_MERGE = "tag:yaml.org,2002:merge"
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):
    """Plain values only; a tag such as !!python/object is refused by the safe constructor."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in rules
        if tag.rpartition(":")[2] in ("bool", "null", "merge")
    ]
    for first, rules in _BaseLoader.yaml_implicit_resolvers.items()
}
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for _tag, _regexp in (("int", _INT), ("float", _FLOAT)):
    _whole = re.compile(f"(?:{_regexp.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list("-+.0123456789"))


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A mapping, and the line on which each of its keys stands."""

    values: dict[str, Any]
    lines: dict[KeyPath, int]


def read(path: Path) -> Parsed:
    """The mapping in a file.

    Raises:
        ConfigError: it cannot be read or is not a YAML mapping; all repeated keys are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file or a packaged run"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    return parse(text, str(path))


def parse(text: str, label: str = "text") -> Parsed:
    """The mapping in a text; `label` stands for the file in messages."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Parsed({}, {})
            if not isinstance(node, yaml.MappingNode):
                raise ConfigError(f"{label}: is not a mapping; write `key: value` lines")
            lines = _lines(node, label)
            values = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error, label)) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(
            f"{label}: is not YAML: {' '.join(str(error).split())}; correct that line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep nesting
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{label}: is not YAML that can be read: {error}; correct it") from error
    return Parsed(values, lines)


def scalar(text: str) -> Any:
    """The value of a text from the command line: 4 is a number, true a truth value, [a, b] a list.

    A text that is not YAML by itself ("a: b: c", "*.ckpt") is taken as it stands.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _syntax(error: yaml.MarkedYAMLError, label: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{label}:{mark.line + 1}" if mark else label
    problem = " ".join((error.problem or str(error)).split())
    if "could not determine a constructor" in problem:
        tag = problem.split(" for the tag ")[-1]
        return f"{where}: {tag} is a tag that runs code or is unknown; write plain values"
    context = f" ({error.context})" if error.context else ""
    column = f", column {mark.column + 1}" if mark else ""
    return f"{where}: not YAML{column}: {problem}{context}; mind the indentation, colons and quotes"


def _lines(root: yaml.MappingNode, label: str) -> dict[KeyPath, int]:
    lines: dict[KeyPath, int] = {}
    repeated = []
    for count, (path, key, again) in enumerate(_keys(root, (), ())):
        if count > MAX_NODES:
            raise ConfigError(
                f"{label}: more than {MAX_NODES} keys; write fewer aliases of aliases"
            )
        if again:
            repeated.append(
                f"{label}:{key.start_mark.line + 1}: {spell(path)}: is written twice "
                f"(first on line {lines[path]}); keep one"
            )
        lines.setdefault(path, key.start_mark.line + 1)
    if repeated:
        raise ConfigError(*repeated)
    return lines


def _keys(
    node: yaml.Node, path: KeyPath, parents: tuple[int, ...]
) -> Iterator[tuple[KeyPath, yaml.Node, bool]]:
    """(path, key node, whether the same mapping has it already) of every key below `node`."""
    if id(node) in parents:
        raise yaml.MarkedYAMLError(
            problem="an alias that contains itself", problem_mark=node.start_mark
        )
    inside = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _keys(item, (*path, index), inside)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        merges = [value for key, value in node.value if key.tag == _MERGE]
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem="a key that is not text", problem_mark=key.start_mark
                )
            yield (*path, key.value), key, key.value in seen
            seen.add(key.value)
            yield from _keys(value, (*path, key.value), inside)
        for value in merges:
            yield from _merged(value, path, inside)


def _merged(
    value: yaml.Node, path: KeyPath, inside: tuple[int, ...]
) -> Iterator[tuple[KeyPath, yaml.Node, bool]]:
    """Keys that `<<: *alias` brings in; never repeated, for the mapping's own win over them."""
    sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
    for source in sources:
        for found, key, _ in _keys(source, path, inside):
            yield found, key, False
