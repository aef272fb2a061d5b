"""Stacks what decides a run: base file, file, command line. Each value remembers its origin."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_core.config import yamlfile
from lm_core.config.explain import KeyPath, spell
from lm_core.config.training import CALLBACK_NAMES
from lm_core.errors import ConfigError

SHORT_KEYS: dict[str, KeyPath] = {
    **{
        key: ("model", "model_config", key)
        for key in (
            "use_past",
            "pretrain_seqlen",
            "extend_method",
            "offset",
            "use_moe",
            "expert_num",
            "per_token_num_experts_chosen",
            "checkpoint_name_or_path",
            "repetition_penalty",
            "max_decode_length",
            "max_new_tokens",
            "top_k",
            "top_p",
            "do_sample",
        )
    },
    "vocab_file": ("processor", "tokenizer", "vocab_file"),
    "max_device_memory": ("context", "max_device_memory"),
    "max_grad_norm": ("runner_wrapper", "max_grad_norm"),
}
"""Keys that the cards print without the section around them -> where they belong."""

_WARM_UPS = tuple(("lr_schedule", f"warmup_{unit}") for unit in ("steps", "ratio", "epochs"))
"""Three ways to say one thing: a layer that uses one displaces what lower layers say in any."""

_TASKS = {"train_dataset_task": "train_dataset", "eval_dataset_task": "eval_dataset"}


@dataclass(frozen=True, slots=True)
class Override:
    """One value from the command line."""

    path: KeyPath
    value: Any
    label: str
    """The flag, or "command line"."""
    text: str | None = None
    """As it was typed; None for a value that is no text to interpret."""

    @classmethod
    def parse(cls, text: str, label: str = "command line") -> Override:
        """From "key.sub=value", the value as in YAML; it may hold more "=".

        Raises:
            ConfigError: there is no key.
        """
        key, separator, value = text.partition("=")
        key = key.lstrip("-")
        if not separator or not re.fullmatch(r"[A-Za-z_][\w.\[\]]*", key):
            raise ConfigError(
                f"{label}: {text!r} is not key=value; write e.g. runner_config.epochs=2"
            )
        return cls(_split(key), yamlfile.scalar(value), label, value)


def _split(key: str) -> KeyPath:
    """Splits "callbacks[1].prefix" or "callbacks.1.prefix" -> ("callbacks", 1, "prefix")."""
    parts = re.findall(r"[^.\[\]]+", key)
    return tuple(int(part) if part.isdigit() else part for part in parts)


@dataclass(slots=True)
class Layers:
    """A run before it is checked."""

    label: str
    """The file, for problems that belong to no line."""
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    """What was typed on the command line, for keys that take text."""
    problems: list[str] = field(default_factory=list)

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path`, or the section around it, comes from."""
        if path[:2] == ("metric", 0) and ("metric", 0) not in self.origins:
            path = ("metric", *path[2:])  # written as a mapping, checked as a list of one
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        inside = (origin for key, origin in self.origins.items() if key[: len(path)] == path)
        return next(inside, self.label)

    def merge(self, values: Mapping[str, Any], origins: Mapping[KeyPath, str]) -> None:
        """Puts a mapping on top; mappings are merged, everything else replaced."""
        self._merge(self.values, values, (), origins)

    def _merge(
        self, under: dict, over: Mapping, path: KeyPath, origins: Mapping[KeyPath, str]
    ) -> None:
        for key, value in over.items():
            here = (*path, key)
            if isinstance(value, Mapping) and isinstance(under.get(key), dict):
                self.origins[here] = origins.get(here, self.label)
                self._merge(under[key], value, here, origins)
                continue
            self._forget(here)
            self._displace(here, {(*path, other) for other in over})
            under[key] = deepcopy(value)
            self.origins |= {
                inner: origin for inner, origin in origins.items() if inner[: len(here)] == here
            }

    def _forget(self, path: KeyPath) -> None:
        """Drops what is known of a value, and of all inside it, that is about to be replaced."""
        for known in (self.origins, self.texts):
            for old in [old for old in known if old[: len(path)] == path]:
                del known[old]

    def _displace(self, path: KeyPath, kept: Container[KeyPath]) -> None:
        """Drops what says in another way what is said at `path` now."""
        section = self.values.get(str(path[0]))
        if path not in _WARM_UPS or not isinstance(section, dict):
            return
        for other in _WARM_UPS:
            if other != path and other not in kept and section.pop(other[-1], None) is not None:
                self._forget(other)

    def override(self, change: Override) -> None:
        """Sets one value; what is wrong with its path is noted in `problems`."""
        place: Any = self.values
        path: KeyPath = ()
        *sections, last = self._in_list(_home(change.path))
        if sections[:1] == ["callbacks"]:
            self.values.setdefault("callbacks", [{"type": "loss_monitor"}, {"type": "checkpoint"}])
        for part in [*sections, last]:
            key = _index(place, part) if isinstance(place, list) else part
            where = f"{change.label}: {spell((*path, part))}"
            if key is None:
                self.problems.append(f"{where}: {_no_such_item(place)}")
                return
            if not isinstance(place, dict | list):
                self.problems.append(
                    f"{where}: {spell(path)} is {place!r}, no mapping; set {spell(path)} itself"
                )
                return
            path = (*path, key)
            if len(path) <= len(sections):
                place = _enter(place, key)
        assert isinstance(place, dict | list)
        place[key] = deepcopy(change.value)  # type: ignore[index]
        self._forget(path)
        self._displace(path, {key for key, from_ in self.origins.items() if from_ == change.label})
        self.origins[path] = change.label
        if change.text is not None:
            self.texts[path] = change.text

    def _in_list(self, path: KeyPath) -> KeyPath:
        """A key of the only metric, which run files write as a mapping and stored runs as a list.

        Args:
            path: `metric.type`, or any other.
        """
        items = self.values.get("metric") if path[0] == "metric" and len(path) > 1 else None
        if not isinstance(items, list) or len(items) != 1 or _index(items, path[1]) is not None:
            return path
        return path if isinstance(path[1], int) else ("metric", 0, *path[1:])


def _enter(place: dict | list, key: Any) -> Any:
    """The section at `key`, made when there is none."""
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    return place[key]


def _index(items: list, part: str | int) -> int | None:
    """The place in a list, by number or, for callbacks and metrics, by type."""
    if isinstance(part, int):
        return part if part < len(items) else None
    wanted = CALLBACK_NAMES.get(part, part)
    for index, item in enumerate(items):
        name = item.get("type") if isinstance(item, dict) else None
        if name is not None and CALLBACK_NAMES.get(name, name) == wanted:
            return index
    return None


def _no_such_item(items: list) -> str:
    names = [
        item["type"]
        for item in items
        if isinstance(item, dict) and isinstance(item.get("type"), str)
    ]
    return f"the list has no such item; use 0 to {len(items) - 1}" + (
        f", or {', '.join(names)}" if names else ""
    )


def _home(path: KeyPath) -> KeyPath:
    """Where a key belongs that was written short, or through the `dataset_config` alias."""
    if len(path) == 1 and path[0] in SHORT_KEYS:
        return SHORT_KEYS[str(path[0])]
    if len(path) > 2 and path[0] in _TASKS and path[1] == "dataset_config":
        return (_TASKS[str(path[0])], *path[2:])
    return path


def read_layers(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str | Override] | Mapping[str, Any] = (),
    folders: Sequence[Path] = (),
) -> Layers:
    """Stacks a run and the files it is based on, and the command line.

    Args:
        source: a file, the name of a packaged run, or a mapping with the same keys.
        overrides: changes, as "key.sub=value", `Override`, or a mapping of dotted keys.
        folders: where packaged runs are.

    Raises:
        ConfigError: a file is missing or is not YAML; `base:` goes round in a circle.
    """
    changes = list(_changes(overrides))
    if isinstance(source, Mapping):
        layers = Layers("run")
        values = deepcopy(dict(source))
        chain = _bases(yamlfile.Parsed(values, {}), "run", Path.cwd(), folders)
    else:
        path = find_run(source, folders)
        layers = Layers(_label(path))
        chain = _bases(yamlfile.read(path), _label(path), path.parent, folders, (path.resolve(),))
    for parsed, label in reversed(list(chain)):
        origins = dict.fromkeys(_paths(parsed.values), label)
        origins |= {path: f"{label}:{line}" for path, line in parsed.lines.items()}
        layers.problems += _tidy(parsed.values, origins, label)
        layers.merge(parsed.values, origins)
    for change in changes:
        layers.override(change)
    return layers


def _paths(values: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key in nested values."""
    if isinstance(values, Mapping | list):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield (*path, key)
            yield from _paths(value, (*path, key))


def _changes(overrides: Iterable[str | Override] | Mapping[str, Any]) -> Iterator[Override]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield Override(_split(str(key)), deepcopy(value), "call")
        return
    for item in overrides:
        yield Override.parse(item) if isinstance(item, str) else item


def _bases(
    parsed: yamlfile.Parsed,
    label: str,
    folder: Path,
    folders: Sequence[Path],
    seen: tuple[Path, ...] = (),
) -> Iterator[tuple[yamlfile.Parsed, str]]:
    """The file, its base, the base's base, ..."""
    base = parsed.values.pop("base", None)
    line = f":{parsed.lines[('base',)]}" if ("base",) in parsed.lines else ""
    yield parsed, label
    if base is None:
        return
    if not isinstance(base, str):
        raise ConfigError(f"{label}{line}: base: is {base!r}; must be the name of one run or file")
    try:
        path = find_run(base, folders, folder)
    except ConfigError as error:
        raise ConfigError(*(f"{label}{line}: base: {text}" for text in error.problems)) from error
    if path.resolve() in seen:
        names = " -> ".join(found.name for found in (*seen, path))
        raise ConfigError(
            f"{label}{line}: base: goes round in a circle ({names}); remove one `base:`"
        )
    yield from _bases(
        yamlfile.read(path), _label(path), path.parent, folders, (*seen, path.resolve())
    )


def _label(path: Path) -> str:
    """A file in messages: from the working directory where it is below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def find_run(name: str | Path, folders: Sequence[Path], beside: Path | None = None) -> Path:
    """The file of a run: a path (from `beside` or the working directory), or a packaged name.

    Raises:
        ConfigError: there is no such run; the nearest name is suggested.
    """
    text = str(name)
    path = Path(text).expanduser()
    plain = path.name == text and path.suffix not in (".yaml", ".yml")
    packaged = [folder / f"{text}{'' if path.suffix == '.yaml' else '.yaml'}" for folder in folders]
    local = [(beside or Path()) / path, (beside or Path()) / f"{text}.yaml"]
    for candidate in [*packaged, *local] if plain else [*local, *packaged]:
        if candidate.is_file():
            return candidate
    known = sorted({found.stem for folder in folders for found in folder.glob("*.yaml")})
    near = difflib.get_close_matches(path.stem.removeprefix("run_"), known, n=1)
    hint = f"did you mean {near[0]}?" if near else "give a YAML file"
    raise ConfigError(
        f"config: {text!r} is neither a file nor one of {', '.join(known) or 'no runs'}; {hint}"
    )


def _tidy(values: dict[str, Any], origins: dict[KeyPath, str], label: str) -> list[str]:
    """Moves short keys to their sections and drops the `dataset_config` aliases, in place."""
    found = []
    for key in [key for key in SHORT_KEYS if key in values]:
        *sections, last = SHORT_KEYS[key]
        place: Any = values
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        origin = origins.pop((key,), label)
        value = values.pop(key)
        if not isinstance(place, dict) or place.get(last, value) != value:
            found.append(
                f"{origin}: {key}: is given here and as {spell(SHORT_KEYS[key])}; keep one"
            )
            continue
        place[last] = value
        origins[SHORT_KEYS[key]] = origin
    for task, dataset in _TASKS.items():
        section = values.get(task)
        if not isinstance(section, dict) or "dataset_config" not in section:
            continue
        alias = section.pop("dataset_config")
        if dataset not in values:
            values[dataset] = deepcopy(alias)
        elif alias != values[dataset]:
            origin = origins.get((task, "dataset_config"), label)
            found.append(
                f"{origin}: {task}.dataset_config: differs from {dataset}; "
                f"write *{dataset} or leave it out"
            )
    return found
