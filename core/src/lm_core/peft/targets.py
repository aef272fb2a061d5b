"""Which layers an adapter goes on, and what its parameters are called. Needs no network.

`target_modules` may name layers as we do (`layers.0.attention.q`) or as any layout of the family
does (`transformer.h.0.attn.c_attn`, `backbone.blocks.0.attention.dense1`), so a pattern from a
model card of others works as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lm_core.checkpoint.layout.tensors import Shape
from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.model import LoraConfig, ModelConfig
    from lm_core.spec import ModelSpec


_WHERE = "pet_config.target_modules"


def linear_layers(spec: ModelSpec, config: ModelConfig) -> dict[str, Shape]:
    """Name -> (in, out) of every layer that can have an adapter.

    That is all matrices but embeddings, heads of a task, which are trained themselves, and heads
    that are normalised.
    """
    return {
        name.removesuffix(".weight"): tuple(shape)
        for name, shape in spec.tables["hf"].shapes(config).items()
        if len(shape) == 2 and name.endswith(".weight") and "embedding" not in name
        if not is_task_head(name)
        if not (config.normalised_head and name == "head.weight")
    }


def is_task_head(parameter: str) -> bool:
    """Whether a parameter belongs to a head that no pretrained model has."""
    return parameter.startswith("score.")


def names_of_layers(spec: ModelSpec, config: ModelConfig) -> dict[str, list[str]]:
    """Our name of each linear layer -> all of its names, ours first."""
    found = {layer: [layer] for layer in linear_layers(spec, config)}
    for table in spec.tables.values():
        for row in table.expand(config):
            for ours in row.ours:
                layer = ours.removesuffix(".weight")
                if layer in found and ours.endswith(".weight"):
                    found[layer] += [theirs.removesuffix(".weight") for theirs in row.theirs]
    return found


def targets(spec: ModelSpec, config: ModelConfig, lora: LoraConfig) -> dict[str, Shape]:
    """Name -> (in, out) of the layers that `lora` chooses.

    Raises:
        ConfigError: the pattern is no regular expression, or no layer has such a name.
    """
    wanted = spec.adapted if lora.target_modules is None else lora.target_modules
    chosen, excluded = (
        _matcher(wanted, _WHERE),
        _matcher(lora.exclude_layers or [], "exclude_layers"),
    )
    names = names_of_layers(spec, config)
    found = {
        layer: shape
        for layer, shape in linear_layers(spec, config).items()
        if any(map(chosen, names[layer])) and not any(map(excluded, names[layer]))
    }
    if not found:
        known = ", ".join(dict.fromkeys(re.sub(r"\d+", "N", name) for name in names))
        raise ConfigError(
            f"{_WHERE}: {wanted!r} is the name of no linear layer of {spec.name}; must match whole "
            f"names; there are {known}"
        )
    return found


def shapes(spec: ModelSpec, config: ModelConfig) -> dict[str, Shape]:
    """All parameters of a configuration under our own names, those of its adapter included."""
    found: dict[str, Shape] = dict(spec.tables["hf"].shapes(config))
    if config.pet_config is not None:
        found |= adapter_shapes(spec, config, config.pet_config)
    return found


def adapter_shapes(spec: ModelSpec, config: ModelConfig, lora: LoraConfig) -> dict[str, Shape]:
    """The parameters of an adapter: `<layer>.lora_a` [in, r] and `<layer>.lora_b` [r, out]."""
    found: dict[str, Shape] = {}
    for layer, (inputs, outputs) in targets(spec, config, lora).items():
        found[f"{layer}.lora_a"] = (inputs, lora.lora_rank)
        found[f"{layer}.lora_b"] = (lora.lora_rank, outputs)
    return found


def trained(names: Iterable[str], lora: LoraConfig | None) -> set[str]:
    """Those of a model's parameters that are trained: all, or what goes with an adapter."""
    if lora is None:
        return set(names)
    also, never = lora.freeze_exclude or [], lora.freeze_include or []
    return {
        name
        for name in names
        if is_adapter_parameter(name)
        or is_task_head(name)
        or any(fnmatchcase(name, pattern) for pattern in also)
        if not any(fnmatchcase(name, pattern) for pattern in never)
    }


def is_adapter_parameter(name: str) -> bool:
    """Whether one of our own names is that of an adapter's parameter."""
    return name.endswith((".lora_a", ".lora_b"))


def _matcher(wanted: str | list[str], where: str) -> Any:
    """A test of names: a pattern fits whole names, an item of a list whole names or their ends."""
    if isinstance(wanted, str):
        try:
            return re.compile(wanted).fullmatch
        except re.error as error:
            raise ConfigError(
                f"{where}: {wanted!r} is no regular expression ({error}); "
                f"write one such as '.*attention.[qv]'"
            ) from error
    ends = tuple(f".{item}" for item in wanted)
    return lambda name: name in wanted or name.endswith(ends)
