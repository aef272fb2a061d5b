"""Reads and checks a run: defaults < base file < file < command line. Reports all problems."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lm_core.config import checks, explain
from lm_core.config.explain import KeyPath, dig
from lm_core.config.layers import Layers, Override, read_layers
from lm_core.config.model import ModelConfig
from lm_core.config.parallel import ParallelConfig
from lm_core.config.schema import RunConfig
from lm_core.config.section import key_names, suggest
from lm_core.errors import ConfigError

__all__ = [
    "Override",
    "dump_run",
    "family_names",
    "load_run",
    "read_layers",
    "resolve",
    "run_values",
]

_SIZES: KeyPath = ("model", "model_config")
_ARCH: KeyPath = ("model", "arch", "type")

Problem = tuple[KeyPath, str]


class ModelFamily(Protocol):
    """What a run must know of its model package."""

    @property
    def name(self) -> str:
        """The package's name."""

    @property
    def config_class(self) -> type[ModelConfig]:
        """Checks `model.model_config`."""

    @property
    def presets(self) -> Mapping[str, ModelConfig]:
        """Sizes by name."""

    @property
    def configs(self) -> Path:
        """The folder of packaged runs."""


def load_run(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str | Override] | Mapping[str, Any] = (),
    *,
    family: ModelFamily,
) -> RunConfig:
    """A run of a known model package.

    Args:
        source: a YAML file, the name of a packaged run, or a mapping with the same keys.
        overrides: "key.sub=value" texts, or a mapping of dotted keys.
        family: the model package.

    Raises:
        ConfigError: every problem found, each line "file:line: key: what is wrong; what to change".
    """
    return resolve(read_layers(source, overrides, [family.configs]), family)


def run_values(run: RunConfig) -> dict[str, Any]:
    """The whole run as plain values that `load_run` makes an equal run of."""
    values = run.model_dump(by_alias=True)
    # Derived from the run's own parallel_config and recompute_config.
    values["model"]["model_config"].pop("parallel_config")
    values["parallel_config"].pop("recompute")
    return values


def dump_run(run: RunConfig) -> str:
    """The same as YAML."""
    values = run_values(run)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def family_names(layers: Layers) -> list[str]:
    """Names in a run that tell which model package it is for, the surest first."""
    found = [
        dig(layers.values, (*_SIZES, "preset")),
        dig(layers.values, ("trainer", "model_name")),
        dig(layers.values, (*_SIZES, "checkpoint_name_or_path")),
        # Before the configuration's, which networks may share.
        dig(layers.values, _ARCH),
        dig(layers.values, (*_SIZES, "type")),
    ]
    return [name for name in found if isinstance(name, str) and name]


def resolve(layers: Layers, family: ModelFamily, *, started: bool = True) -> RunConfig:
    """Checks stacked layers and makes the run; `started`: see `checks.report_no_effect`.

    Raises:
        ConfigError: every problem found.
    """
    twice = _rename(layers, family.config_class)
    _take_texts(layers, family)
    places = _places(family)
    preset = _preset(layers, family)
    found = [*twice, *_preset_problems(layers, family), *_network_problems(layers, family, preset)]
    config, wrong = _validate(family.config_class, _sizes(layers, family, preset), _SIZES, places)
    found += wrong
    # A stand-in lets the rest of the run be checked in the same pass when the sizes are wrong.
    values = _with_config(layers.values, config or next(iter(family.presets.values())))
    run, more = _validate(RunConfig, values, (), places)
    found += more
    if run is not None:
        _complete(run, preset)
        found += _news(checks.problems(run), found)
    lines = [f"{layers.origin(path)}: {explain.spell(path)}: {text}" for path, text in found]
    if layers.problems or lines:
        raise ConfigError(*layers.problems, *lines)
    run.set_origins(_flat_origins(layers, family, preset))
    checks.report_no_effect(run, started=started)
    return run


def _rename(layers: Layers, config: type[ModelConfig]) -> list[Problem]:
    """Gives sizes the names that the model's fields have; those that are given twice."""
    given, found = dig(layers.values, _SIZES), list[Problem]()
    for key in [key for key in config.other_names if isinstance(given, dict) and key in given]:
        old, new = (*_SIZES, key), (*_SIZES, config.other_names[key])
        value = given.pop(key)
        if given.setdefault(new[-1], value) != value:
            found.append((old, f"is given, and so is {new[-1]}, which is the same; keep one"))
        for kept in (layers.origins, layers.texts):
            if old in kept:
                kept.setdefault(new, kept.pop(old))
    return found


def _preset(layers: Layers, family: ModelFamily) -> str:
    """The preset that the sizes start from, "" for none: as said, else the model's name."""
    names = [*family_names(layers)[:3], family.name]
    return next((name for name in names if name in family.presets), "")


def _preset_problems(layers: Layers, family: ModelFamily) -> list[Problem]:
    given = dig(layers.values, _SIZES)
    if given is not None and not isinstance(given, dict):
        return [(_SIZES, f"is {explain.show(given)}; must be a mapping (key: value)")]
    preset = dig(given, ("preset",))
    if preset is None or (isinstance(preset, str) and preset in family.presets):
        return []
    hint = suggest(str(preset), family.presets)
    return [((*_SIZES, "preset"), f"{explain.show(preset)} is no preset; {hint}")]


def _sizes(layers: Layers, family: ModelFamily, preset: str) -> dict[str, Any]:
    """The model configuration's values: the preset's, the network's, and over them the run's."""
    given = dig(layers.values, _SIZES)
    start = family.presets[preset].explicit() if preset else {}
    start.pop("parallel_config", None)
    sizes = {**start, **_implied(layers, family), **(given if isinstance(given, dict) else {})}
    sizes.pop("preset", None)
    return sizes


def _implied(layers: Layers, family: ModelFamily) -> Mapping[str, Any]:
    """What follows from the name of the network."""
    return family.config_class.implied.get(str(dig(layers.values, _ARCH)), {})


def _network_problems(layers: Layers, family: ModelFamily, preset: str) -> list[Problem]:
    """Where a preset and the name of the network contradict each other, and the run is silent."""
    given, found = dig(layers.values, _SIZES), list[Problem]()
    for key, value in _implied(layers, family).items() if preset else ():
        other = getattr(family.presets[preset], key)
        if other != value and not (isinstance(given, dict) and key in given):
            found.append(
                (
                    _ARCH,
                    f"is a network with {key} {value}, and {preset} has {other}; must agree; "
                    f"change one of the two, or set model.model_config.{key}",
                )
            )
    return found


def _with_config(values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    section = values.get("model", {})
    if not isinstance(section, dict):
        return values
    return {**values, "model": {**section, "model_config": config}}


def _validate(
    section: type[BaseModel], values: Any, prefix: KeyPath, places: Mapping[str, str]
) -> tuple[Any, list[Problem]]:
    """The section and its problems. With problems it is what the other values give, or None."""
    found: list[Problem] = []
    for _ in range(2):
        try:
            return section.model_validate(values), found
        except ValidationError as error:
            wrong = explain.problems(error, section, values, prefix, places)
        found += _news(wrong, found)
        values = _without(values, [path[len(prefix) :] for path, _ in wrong])
    return None, found


def _without(values: Any, paths: list[KeyPath]) -> Any:
    """A copy of nested values without those at some paths."""
    if not paths or not isinstance(values, dict | list):
        return values
    kept = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        inside = [path[1:] for path in paths if path and path[0] == key]
        if () not in inside:
            kept[key] = _without(value, inside)
    return kept if isinstance(values, dict) else list(kept.values())


def _news(problems: Iterable[Problem], earlier: list[Problem]) -> list[Problem]:
    """The problems that no earlier one explains: they speak of none of its keys."""
    keys = {str(path[-1]) for path, _ in earlier if path}
    return [
        (path, text)
        for path, text in problems
        if not keys & {*re.findall(r"\w+", text), *map(str, path[-1:])}
    ]


def _complete(run: RunConfig, preset: str) -> None:
    """Fills in what follows from other keys."""
    if preset and not run.trainer.model_name:
        run.trainer.model_name = preset
    config, trainer = run.model.config, run.trainer
    if not trainer.is_set("type"):
        trainer.type = config.architectures.get(run.model.arch.type, config.task)
    if config.task != trainer.type and not config.is_set("task"):
        config.task = trainer.type
    build_parallel_config(run)


def build_parallel_config(run: RunConfig) -> ParallelConfig:
    """Gives the model of a run the degrees that the run has now; 1 without `use_parallel`.

    Reading a run does so. A program that changes its `parallel_config` or `recompute_config`
    afterwards does it again.
    """
    run.parallel_config.recompute = run.recompute_config
    alone = ParallelConfig(recompute=run.recompute_config.model_copy())
    run.model.config.parallel_config = run.degrees if run.use_parallel else alone
    return run.model.config.parallel_config


def _flat_origins(layers: Layers, family: ModelFamily, preset: str) -> dict[str, str]:
    """Dotted key -> origin, for values and not for the sections around them."""
    sections = {path[:length] for path in layers.origins for length in range(1, len(path))}
    flat = {
        explain.spell(path): origin
        for path, origin in layers.origins.items()
        if path not in sections
    }
    for key in _implied(layers, family):
        flat.setdefault(explain.spell((*_SIZES, key)), layers.origin(_ARCH))
    if preset:
        flat.setdefault("trainer.model_name", f"preset {preset}")
        for key in family.presets[preset].model_fields_set:
            flat.setdefault(explain.spell((*_SIZES, key)), f"preset {preset}")
    return flat


def _take_texts(layers: Layers, family: ModelFamily) -> None:
    """Command-line values of keys that take text stay as typed: `output_dir=2024` is a folder.

    Likewise 0 and 1 are truth values where only these are taken.
    """
    for path, text in layers.texts.items():
        kinds = _kinds_at(path, family)
        place = dig(layers.values, path[:-1])
        value = place[path[-1]]
        if type(value) in kinds or (isinstance(value, int) and float in kinds):
            continue
        if str in kinds:
            place[path[-1]] = text
        elif kinds == {bool} and value in (0, 1):
            place[path[-1]] = bool(value)


def _kinds_at(path: KeyPath, family: ModelFamily) -> set[Any]:
    """The plain types that the key at `path` takes."""
    section: type[BaseModel] = RunConfig
    if path[:2] == _SIZES:
        section, path = family.config_class, path[2:]
    field = explain.find_field(section, path)
    return set(_plain(field.annotation)) if field is not None else set()


def _plain(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _plain(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _plain(argument)
    else:
        yield get_origin(annotation) or annotation


def _places(family: ModelFamily) -> dict[str, str]:
    """Key -> the shallowest dotted path at which it is known."""
    found: dict[str, str] = {}

    def visit(section: type[BaseModel], prefix: str) -> None:
        for key in key_names(section):
            path = f"{prefix}{key}"
            if key not in found or path.count(".") < found[key].count("."):
                found[key] = path
        for name, field in section.model_fields.items():
            inner = field.annotation
            if (
                isinstance(inner, type)
                and issubclass(inner, BaseModel)
                and inner is not ModelConfig
            ):
                visit(inner, f"{prefix}{field.alias or name}.")

    visit(RunConfig, "")
    visit(family.config_class, "model.model_config.")
    return found
