"""Checkpoints as files and directories: readers for every format, and models to and from them."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core.checkpoint import tensorfile
from lm_core.checkpoint.atomic import new_directory, require_space
from lm_core.checkpoint.ckpt import CkptFile
from lm_core.checkpoint.layout.tensors import (
    BFLOAT16,
    Tensors,
    TensorSpec,
    cast,
    stream,
    total_bytes,
)
from lm_core.checkpoint.tensorfile import Progress, SafetensorsFile
from lm_core.config.section import NO_EFFECT
from lm_core.errors import CheckpointError

if TYPE_CHECKING:
    from mindspore import Parameter

    from lm_core.config.model import ModelConfig

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
CARRIED_FILES = (*TOKENIZER_FILES, "generation_config.json")
"""Files beside the weights that belong to a model whatever the layout of its weights."""

_STRIP = 64
"""Columns copied at once: a strip of both sides stays in the processor's cache."""

_PICKLED = (".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", ".ckpt", *_PICKLED)


def open_file(path: str | Path) -> Tensors:
    """The tensors of a .safetensors, .ckpt or PyTorch file.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; give a file that ends in {', '.join(SUFFIXES)}"
        )
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix == ".ckpt":
        return CkptFile(path)
    if path.suffix in _PICKLED:
        return TorchFile(path)
    raise CheckpointError(
        f"{path}: unknown kind of weights file; give one that ends in {', '.join(SUFFIXES)}"
    )


def open_directory(directory: str | Path) -> Tensors:
    """The tensors of a directory with one weights file, or several and their index.

    safetensors come before other formats where a directory has both.
    """
    directory = Path(directory)
    for name in (
        "model.safetensors",
        tensorfile.INDEX,
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ):
        path = directory / name
        if path.is_file():
            return _indexed(path) if name.endswith(".json") else open_file(path)
    for suffix in (".safetensors", ".ckpt"):
        files = _weight_files(directory, suffix)
        if files:
            return _together(directory, files)
    raise CheckpointError(
        f"{directory}: holds no weights; model.safetensors, {tensorfile.INDEX} or one .ckpt file "
        f"must be there; give another directory"
    )


def weight_files(directory: Path) -> list[Path]:
    """The .safetensors and .ckpt files of a model, whatever they are called."""
    return [path for suffix in SUFFIXES[:2] for path in _weight_files(directory, suffix)]


def has_weights(directory: Path) -> bool:
    """Whether `open_directory` would find something."""
    if weight_files(directory):
        return True
    return any(next(directory.glob(name), None) for name in ("*.index.json", "pytorch_model.bin"))


def _weight_files(directory: Path, suffix: str) -> list[Path]:
    """The files of a model: not an adapter beside it, nor the state of an optimizer."""
    others = (f"adapter_model{suffix}", f"optimizer{suffix}")
    return sorted(path for path in directory.glob(f"*{suffix}") if path.name not in others)


def _together(directory: Path, paths: list[Path]) -> Tensors:
    """One file, or several that share no name (MindFormers keeps an adapter in a file beside)."""
    parts = [open_file(path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    counts = Counter(name for part in parts for name in part.specs)
    if max(counts.values()) > 1:
        listed = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"{directory}: holds {listed}, which have the same tensors, and no index; "
            f"give one of these files"
        )
    return Joined(str(directory), [(part, part.specs.keys()) for part in parts])


class TorchFile:
    """A PyTorch file as `Tensors`, read with `weights_only=True`: nothing else is unpickled.

    Raises:
        CheckpointError: torch is not installed, or the file holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.metadata: Mapping[str, str] = {}
        try:
            import torch  # type: ignore[import-not-found]
        except ImportError as error:
            raise CheckpointError(
                f"{path}: a PyTorch file needs torch to be read; "
                f"pip install 'lm-core[torch]', or use safetensors"
            ) from error
        try:
            # The format before 2020 is no zip file and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises its own kinds for each way a file can be bad.
            first = str(error).strip().split("\n")[0].split(". ")[0][:160]
            raise CheckpointError(
                f"{path}: torch cannot read it as plain weights ({first}); "
                f"nothing else is ever unpickled; use safetensors"
            ) from error
        if not isinstance(state, Mapping):
            raise CheckpointError(
                f"{path}: holds a {type(state).__name__}; it must be a state dict; use safetensors"
            )
        tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
        if len(tensors) != len(state):
            other = ", ".join(str(key) for key in state if key not in tensors)
            raise CheckpointError(
                f"{path}: holds more than tensors ({other}); save the state dict alone"
            )
        self._tensors = tensors
        self._bfloat16, self._bits = torch.bfloat16, torch.int16
        self.specs = {name: self._spec(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor."""
        tensor = self._tensors[name].contiguous()
        if tensor.dtype == self._bfloat16:
            return tensor.view(self._bits).numpy().view(BFLOAT16).copy()
        return tensor.numpy().copy()

    def _spec(self, tensor: Any) -> TensorSpec:
        name = str(tensor.dtype).removeprefix("torch.")
        try:
            dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
        except TypeError as error:
            raise CheckpointError(
                f"{self.where}: holds tensors of type {name}; save them as float32 or bfloat16"
            ) from error
        return TensorSpec(tuple(tensor.shape), dtype)


class Joined:
    """Several files as one `Tensors`."""

    def __init__(self, where: str, parts: Iterable[tuple[Tensors, Collection[str]]]) -> None:
        self.where = where
        self.metadata: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self._part: dict[str, Tensors] = {}
        for part, names in parts:
            self.metadata.update(part.metadata)
            for name in (name for name in part.specs if name in names):
                self.specs[name] = part.specs[name]
                self._part[name] = part

    def read(self, name: str) -> np.ndarray:
        """Reads from the file that has it."""
        return self._part[name].read(name)


class Parameters:
    """The parameters of a model as `Tensors`."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.where = "model"
        self.metadata: Mapping[str, str] = {}
        self._parameters = parameters
        self.specs = {
            name: TensorSpec(tuple(parameter.shape), _numpy_dtype(parameter))
            for name, parameter in parameters.items()
        }

    def read(self, name: str) -> np.ndarray:
        """The values; on a CPU without a copy."""
        array = self._parameters[name].asnumpy()
        dtype = self.specs[name].dtype
        return array.view(np.uint16).view(dtype) if dtype == BFLOAT16 else array


def values(parameter: Parameter) -> np.ndarray:
    """A parameter's values in float64."""
    (array,) = (array for _, array in stream(Parameters({parameter.name: parameter})))
    return cast(array, np.dtype("<f4")).astype(np.float64)


def assign(
    parameters: Mapping[str, Parameter], tensors: Tensors, progress: Progress | None = None
) -> None:
    """Puts tensors into parameters, one at a time, cast to each parameter's type.

    Raises:
        CheckpointError: a tensor for which there is no parameter, or of another shape.
    """
    wrong = [
        f"{tensors.where}: {name} is {list(spec.shape)} and the model has "
        f"{list(parameters[name].shape) if name in parameters else 'no such parameter'}; "
        f"use the configuration that belongs to these weights"
        for name, spec in tensors.specs.items()
        if name not in parameters or tuple(parameters[name].shape) != spec.shape
    ]
    if wrong:
        raise CheckpointError(*wrong)
    for name, array in stream(tensors):
        _fill(parameters[name], array)
        if progress is not None:
            progress(array.nbytes)


def write_native(
    directory: Path,
    spec_name: str,
    config: ModelConfig,
    tensors: Tensors,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes config.json and the weights under our own names into what `new_directory` gave."""
    require_space(directory, total_bytes(tensors))
    write_config(directory, spec_name, config)
    tensorfile.write_sharded(directory, tensors, max_shard_size, progress)


def write_config(
    directory: Path, spec_name: str, config: ModelConfig, layout: Mapping[str, str] | None = None
) -> None:
    """Writes our own config.json: the architecture, and what reads it back.

    Args:
        directory: where.
        spec_name: the model family.
        config: the architecture.
        layout: "name" of the layout of the weights beside it, and notes; None for our own.
    """
    ours = {"lm_model": spec_name} | ({} if layout is None else {"lm_layout": dict(layout)})
    text = json.dumps({**ours, **architecture(config)}, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def architecture(config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint says of its configuration: all but what is of a run or does nothing."""
    idle = {key for key, f in type(config).model_fields.items() if NO_EFFECT in f.metadata}
    run = {"checkpoint_name_or_path", "parallel_config"}
    head = set() if config.is_classifier else {"num_labels", "label_names"}
    return config.model_dump(mode="json", exclude=run | idle | head)


def save_native(
    target: str | Path,
    spec_name: str,
    config: ModelConfig,
    tensors: Tensors,
    *,
    overwrite: bool = True,
    max_shard_size: int | None = None,
    files: Mapping[str, str | Path] | None = None,
) -> None:
    """Writes a native directory: config.json, model.safetensors, manifest.json; whole or not.

    Args:
        target: the directory; an older checkpoint in it is replaced when the new one is complete.
        spec_name: the model family.
        config: the architecture.
        tensors: the weights under our own names.
        overwrite: False refuses to replace.
        max_shard_size: bytes of a weights file; one file if None.
        files: more files by name: a path to copy, or the text itself.
    """
    with new_directory(target, overwrite=overwrite) as directory:
        write_native(directory, spec_name, config, tensors, max_shard_size)
        for name, content in (files or {}).items():
            add_file(directory / name, content)


def add_file(path: Path, content: str | Path) -> None:
    """Copies a file, or writes a text."""
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_text(content, encoding="utf-8")


def carried_files(directory: Path) -> dict[str, Path]:
    """The tokenizer and generation files of a directory."""
    return {name: directory / name for name in CARRIED_FILES if (directory / name).is_file()}


def _indexed(path: Path) -> Joined:
    """The shards that an index lists."""
    files: dict[str, set[str]] = {}
    try:
        for name, file in json.loads(path.read_bytes())["weight_map"].items():
            files.setdefault(file, set()).add(name)
        outside = [file for file in files if os.path.basename(file) != file]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: no index of shards; it must have a weight_map; use another copy"
        ) from error
    if outside:
        raise CheckpointError(
            f"{path}: names {', '.join(sorted(outside))}; shards must lie beside the index"
        )
    absent = sorted(file for file in files if not (path.parent / file).is_file())
    if absent:
        raise CheckpointError(
            f"{path}: {', '.join(absent)} missing; all shards must be there; copy them too"
        )
    parts = [(open_file(path.parent / file), files[file]) for file in sorted(files)]
    lacking = [name for part, names in parts for name in sorted(names - part.specs.keys())]
    if lacking:
        raise CheckpointError(f"{path}: the shards lack {', '.join(lacking)}; use a complete copy")
    return Joined(str(path.parent), parts)


def _numpy_dtype(parameter: Parameter) -> np.dtype:
    name = str(parameter.dtype).lower()
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def _fill(parameter: Parameter, array: np.ndarray) -> None:
    """Overwrites a parameter's value without a second copy of it."""
    from mindspore import Tensor

    from lm_core.parallel import backend

    dtype = _numpy_dtype(parameter)
    values = cast(array, dtype)
    if backend.on_cpu():
        # A CPU parameter's array is its memory, also after graphs have used it; `set_data` would
        # hold old value, new value and source at the same time.
        memory = parameter.asnumpy()
        _copy(memory.view(np.uint16).view(dtype) if dtype == BFLOAT16 else memory, values)
        return
    # Tensors take bfloat16 as float32 values; cast above has rounded them.
    values = cast(values, np.dtype("<f4")) if dtype == BFLOAT16 else values
    parameter.set_data(Tensor(np.ascontiguousarray(values), parameter.dtype))


def _copy(to: np.ndarray, values: np.ndarray) -> None:
    """`to[:] = values`, in strips where one is the other transposed: five times faster."""
    if values.ndim == 2 and values.flags.f_contiguous and not values.flags.c_contiguous:
        for start in range(0, values.shape[1], _STRIP):
            to[:, start : start + _STRIP] = values[:, start : start + _STRIP]
    else:
        np.copyto(to, values)
