"""Adapters as files: a folder with adapter_config.json and adapter_model.safetensors.

PEFT's have the same names and other contents. Ours remember the checksum of the weights that they
were trained on, and refuse others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.checkpoint import atomic, io, saved, tensorfile
from lm_core.checkpoint.layout.tensors import FLOATS, Memory, Tensors, cast
from lm_core.checkpoint.source import read_json
from lm_core.config.model import LoraConfig
from lm_core.errors import CheckpointError, ConfigError
from lm_core.peft import layout, targets

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Options of PEFT that compute something else, and the values that mean that they are not used.
_UNKNOWN_TO_US = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "use_qalora": (False, None),
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "use_bdlora": (None, False),
}


@dataclass
class Adapter:
    """An adapter in memory.

    Attributes:
        config: its settings; `target_modules` are our names of its layers.
        arrays: its parameters under our names, task heads that were trained with it included.
        base: where the weights it was trained on came from; "" if nothing says it.
        base_sum: their checksum, "" if nothing says it.
        where: the file or folder, for messages.
    """

    config: LoraConfig
    arrays: dict[str, np.ndarray]
    base: str = ""
    base_sum: str = ""
    where: str = "adapter"

    @property
    def layers(self) -> list[str]:
        """Our names of the layers that it is on."""
        return layout.layers(filter(layout.is_adapter_name, self.arrays))


def has_adapter(directory: Path) -> bool:
    """Whether an adapter lies in a folder."""
    return (directory / CONFIG).is_file()


def base_of(directory: Path) -> str:
    """Where the weights came from that the adapter in a folder was trained on; "" if unknown.

    Raises:
        CheckpointError: its settings cannot be read.
    """
    return str(read_json(directory / CONFIG).get("base_model_name_or_path") or "")


def checksum(weights: Tensors, dtype: str = "float32") -> str:
    """`dtype:SHA-256` of all weights but adapters, whatever the files that they came from.

    Args:
        weights: under our own names.
        dtype: what they are cast to first, so that a model in bfloat16 and its copy in float32
            have one sum.
    """
    total = hashlib.sha256()
    for name in sorted(name for name in weights.specs if not layout.is_adapter_name(name)):
        if targets.is_task_head(name):
            continue
        array = np.ascontiguousarray(cast(weights.read(name), FLOATS[dtype]))
        total.update(f"{name} {list(array.shape)}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return f"{dtype}:{total.hexdigest()}"


def check_base(adapter: Adapter, weights: Tensors) -> None:
    """Refuses weights that the adapter was not trained on.

    Raises:
        CheckpointError: the checksums differ.
    """
    if not adapter.base_sum:
        return
    actual = checksum(weights, adapter.base_sum.partition(":")[0])
    if actual != adapter.base_sum:
        named = f" ({adapter.base})" if adapter.base else ""
        raise CheckpointError(
            f"{adapter.where}: was trained on other weights{named}; their checksum is "
            f"{adapter.base_sum[:20]} and that of {weights.where} is {actual[:20]}; "
            f"use the weights it was trained on"
        )


def read(
    path: str | Path, spec: ModelSpec, config: ModelConfig, lora: LoraConfig | None = None
) -> Adapter:
    """The adapter in a folder or a file.

    Args:
        path: a folder with adapter_config.json, the output of a run that saved some (the newest is
            taken), or a file with adapter tensors.
        spec: the model family.
        config: the architecture of the base.
        lora: its settings, for files that do not say them (MindFormers').

    Raises:
        CheckpointError: it is damaged, incomplete, of another model, or computes what we do not.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory; give a folder with {CONFIG}")
    if path.is_dir() and not has_adapter(path):
        path = saved.newest(path, CONFIG) or path
    if path.is_dir() and has_adapter(path):
        return _read_directory(path, spec, config)
    tensors = io.open_directory(path) if path.is_dir() else io.open_file(path)
    return inside(tensors, spec, config, lora)


def inside(
    tensors: Tensors, spec: ModelSpec, config: ModelConfig, lora: LoraConfig | None = None
) -> Adapter:
    """The adapter among a model's weights; arguments and errors as for `read`."""
    lora = lora or config.pet_config
    if not any(map(layout.is_adapter_name, tensors.specs)):
        raise CheckpointError(f"{tensors.where}: holds no adapter; give a folder with {CONFIG}")
    if lora is None:
        raise CheckpointError(
            f"{tensors.where}: does not say rank and alpha of its adapter; "
            f"set model.model_config.pet_config"
        )
    arrays = layout.load(tensors, spec, config, lora)
    return Adapter(lora, arrays, where=tensors.where)


def write(
    directory: Path,
    adapter: Adapter,
    spec: ModelSpec,
    config: ModelConfig,
    kind: layout.Layout = "native",
) -> None:
    """Writes an adapter into what `atomic.new_directory` gave.

    Raises:
        CheckpointError: the layout cannot hold it.
    """
    lora = adapter.config
    if kind == "native":
        arrays = adapter.arrays
        settings: dict[str, Any] = {"lm_model": spec.name, **lora.model_dump(mode="json")}
    else:
        arrays, settings = layout.save(adapter.arrays, spec, config, lora, kind)
    settings["base_model_name_or_path"] = adapter.base
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
    notes = {"format": "pt", "base": adapter.base_sum}
    tensorfile.write(directory / WEIGHTS, Memory(arrays, metadata=notes))


def _read_directory(path: Path, spec: ModelSpec, config: ModelConfig) -> Adapter:
    if (path / atomic.MANIFEST).is_file():
        atomic.check(path)
    values = read_json(path / CONFIG)
    tensors = _open(path)
    base = str(values.pop("base_model_name_or_path", "") or "")
    if "lm_model" in values:
        lora = _own_settings(path, values, spec)
        arrays = layout.load(tensors, spec, config, lora)
        chosen = layout.layers(arrays)
        arrays |= {n: tensors.read(n) for n in tensors.specs if not layout.is_adapter_name(n)}
    else:
        lora, scales = _peft_settings(path, values, tensors)
        arrays = layout.load(tensors, spec, config, lora, scales)
        chosen = layout.layers(arrays)
        arrays |= _heads(path, tensors)
    lora.target_modules = chosen
    return Adapter(lora, arrays, base, tensors.metadata.get("base", ""), str(path))


def _own_settings(path: Path, values: dict[str, Any], spec: ModelSpec) -> LoraConfig:
    family = values.pop("lm_model")
    if family != spec.name:
        raise CheckpointError(
            f"{path}: is an adapter of a {family} model; this one is {spec.name}; use its own"
        )
    try:
        return LoraConfig.parse(values)
    except ConfigError as error:
        raise CheckpointError(*(f"{path / CONFIG}: {text}" for text in error.problems)) from error


def _open(path: Path) -> Tensors:
    for name in (WEIGHTS, "adapter_model.bin"):
        if (path / name).is_file():
            return io.open_file(path / name)
    raise CheckpointError(f"{path}: has {CONFIG} and no {WEIGHTS}; use a complete copy")


def _peft_settings(
    path: Path, values: Mapping[str, Any], tensors: Tensors
) -> tuple[LoraConfig, dict[str, float]]:
    """Settings for all layers, and alpha / rank by their names of layers."""
    where = path / CONFIG
    wrong = [
        f"{where}: {key} is {values[key]!r}; only {idle[0]!r} is computed here; merge the adapter "
        f"with PEFT and convert the result"
        for key, idle in _UNKNOWN_TO_US.items()
        if key in values and values[key] not in idle
    ]
    if str(values.get("peft_type", "LORA")).upper() != "LORA":
        wrong.append(f"{where}: peft_type is {values['peft_type']!r}; only LORA is known")
    if wrong:
        raise CheckpointError(*wrong)
    _, pairs = layout.pairs_of(tensors)
    default, alpha = int(values.get("r", 8)), float(values.get("lora_alpha", 8))
    scales = {}
    for layer, (a, _) in pairs.items():
        own = float(_pattern(values.get("alpha_pattern"), layer, alpha))
        rank = a.shape[0]
        scales[layer] = own / (math.sqrt(rank) if values.get("use_rslora") else rank)
    largest = max((a.shape[0] for a, _ in pairs.values()), default=default)
    common = scales[next(iter(scales))] if len(set(scales.values())) == 1 else alpha / largest
    lora = LoraConfig(
        lora_rank=largest,
        lora_alpha=common * largest,
        lora_dropout=float(values.get("lora_dropout") or 0.0),
        target_modules=list(pairs),
    )
    return lora, scales


def _pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's own rule: a key is a pattern for the end of a layer's name."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", layer):
            return value
    return default


def _heads(path: Path, tensors: Tensors) -> dict[str, np.ndarray]:
    """Task heads that PEFT saved with an adapter, as [in, out]; there must be nothing else."""
    found, unknown = {}, []
    for name in (name for name in tensors.specs if not layout.is_adapter_name(name)):
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        if targets.is_task_head(plain):
            found[plain] = np.ascontiguousarray(tensors.read(name).T)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{path}: holds {', '.join(unknown)} beside A and B of layers, which is not read; "
            f"merge the adapter with PEFT and convert the result"
        )
    return found
