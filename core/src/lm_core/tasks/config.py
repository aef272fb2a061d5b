"""`config`: prints every setting of a run as YAML, and behind it where it comes from."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from lm_core.config import checks
from lm_core.config.explain import KeyPath, spell
from lm_core.config.flags import add_run_arguments, resolve_run
from lm_core.config.load import run_values

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.spec import ModelSpec

_COLUMN = 48
"""Where comments start, or two blanks behind a longer line."""

Line = tuple[str, KeyPath | None]
"""A line of YAML, and the key whose value it holds; None for a section."""


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    parser.add_argument("--changed", action="store_true", help="leave out what is a default")


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints the run; what is printed is a run file itself."""
    settings = looked_at(spec, args, overrides)
    print("\n".join(explained(settings, changed=args.changed)))
    return 0


def looked_at(spec: ModelSpec, args: Namespace, overrides: list[str]) -> RunConfig:
    """The run of a command line that starts nothing; without a run, the one of the model's name."""
    named = args.config or args.load_checkpoint
    if not named and spec.name in (*spec.presets, *spec.run_names()):
        args.config = spec.name
    return resolve_run(spec, args, overrides, started=False)


def explained(settings: RunConfig, *, changed: bool = False) -> Iterator[str]:
    """The lines of the run, each with the origin of its value.

    Args:
        settings: the run.
        changed: leave out defaults, and sections that hold nothing else.
    """
    useless = set(checks.no_effect(settings))
    waiting: list[str] = []  # heads of sections of which nothing has been said yet
    for text, path in _lines(run_values(settings), ()):
        depth = len(text) - len(text.lstrip())
        waiting = [head for head in waiting if len(head) - len(head.lstrip()) < depth]
        if path is None:
            waiting.append(text)
            continue
        origin = _origin(settings, path)
        if changed and origin == "default" and not _names_item(settings, path):
            continue
        yield from waiting
        waiting = []
        note = f"{origin}, without effect here" if spell(path) in useless else origin
        yield f"{text:<{_COLUMN - 2}}  # {note}"


def _origin(settings: RunConfig, path: KeyPath) -> str:
    """As `RunConfig.origin`; a list of one may have been written without the list."""
    found = settings.origin(spell(path))
    if found == "default" and 0 in path:
        return settings.origin(spell(tuple(part for part in path if part != 0)))
    return found


def _names_item(settings: RunConfig, path: KeyPath) -> bool:
    """Whether this is the type of an item of a list in which something is no default."""
    if path[-1] != "type" or len(path) < 3 or not isinstance(path[-2], int):
        return False
    return any(key.startswith(spell(path[:-2])) for key in settings.origins)


def _lines(values: Any, path: KeyPath, indent: str = "") -> Iterator[Line]:
    """A mapping as block YAML, lists of mappings as items, all else on the line of its key."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", None
            yield from _lines(value, here, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{indent}{key}:", None
            for number, item in enumerate(value):
                yield from _item(item, (*here, number), indent)
        else:
            yield f"{indent}{key}: {_scalar(value)}", here


def _item(item: Mapping[str, Any], path: KeyPath, indent: str) -> Iterator[Line]:
    """An item of a list; its first key stands behind the dash."""
    dash = f"{indent}  - "
    for text, key in _lines(item, path, f"{indent}    "):
        yield dash + text[len(dash) :], key
        dash = f"{indent}    "


def _scalar(value: Any) -> str:
    """A value on one line."""
    if "\n" in str(value) or "\\n" in repr(value):
        return json.dumps(value, ensure_ascii=False)  # YAML would go on in the next line
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
