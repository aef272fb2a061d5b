"""The safetensors format, read one tensor at a time and written as a stream.

The `safetensors` package cannot give bfloat16 to NumPy, and writes only what is in memory as a
whole; so the format (8 bytes of length, a JSON header, the bytes of the tensors) is read and
written here. Its source: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm_core.checkpoint.atomic import new_file
from lm_core.checkpoint.layout.tensors import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    Tensors,
    TensorSpec,
    total_bytes,
)
from lm_core.errors import CheckpointError

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F8_E4M3": FLOAT8_E4M3,
    "F8_E5M2": FLOAT8_E5M2,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000
_BLOCK = 1 << 24

INDEX = "model.safetensors.index.json"
Progress = Callable[[int], None]
"""Told the number of bytes just written."""


class SafetensorsFile:
    """A .safetensors file as `Tensors`; opening it reads and checks the header.

    Raises:
        CheckpointError: not a safetensors file, damaged or cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.where = str(path)
        header, self._start = self._header()
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        self._offsets: dict[str, int] = {}
        self.specs: dict[str, TensorSpec] = {}
        try:
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            for name, entry in entries:
                self._offsets[name] = entry["data_offsets"][0]
                self.specs[name] = self._spec(name, entry)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise self._damaged("its header is no table of tensors") from error
        self._check_offsets()

    def read(self, name: str) -> np.ndarray:
        """Reads the tensor; nothing is mapped or kept."""
        shape, dtype = self.specs[name]
        count = int(np.prod(shape, dtype=np.int64))
        array = np.fromfile(self.path, dtype, count, offset=self._start + self._offsets[name])
        if array.size != count:
            raise self._damaged(f"it ends inside {name}")
        return array.reshape(shape)

    def _header(self) -> tuple[dict[str, Any], int]:
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= _LARGEST_HEADER:
                    raise self._damaged("its header has an impossible length")
                header = json.loads(file.read(length))
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be read ({error.strerror}); name a file that can"
            ) from error
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no table of tensors")
        return header, 8 + length

    def _spec(self, name: str, entry: dict[str, Any]) -> TensorSpec:
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has type {entry['dtype']}; lm reads {', '.join(DTYPES)}; "
                f"convert it to one of these"
            )
        if not all(isinstance(size, int) and size >= 0 for size in entry["shape"]):
            raise self._damaged(f"{name} has an impossible shape")
        return TensorSpec(tuple(entry["shape"]), DTYPES[entry["dtype"]])

    def _check_offsets(self) -> None:
        """The tensors must follow each other without holes and fill the file."""
        end = 0
        for name, spec in self.specs.items():
            if self._offsets[name] != end:
                raise self._damaged(f"{name} does not begin where the tensor before it ends")
            end += spec.nbytes
        size = self.path.stat().st_size
        if size != self._start + end:
            raise self._damaged(f"it has {size} bytes and its header asks for {self._start + end}")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; it is cut off or damaged: use another copy")


def write(
    path: str | Path,
    tensors: Tensors,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a .safetensors file, one tensor at a time; it appears when it is complete.

    Args:
        path: the file.
        tensors: what to write, with its metadata.
        names: some of them only.
        progress: told the bytes as they are written.
    """
    chosen = list(tensors.specs) if names is None else list(names)
    # Wide types first keeps every tensor aligned to its own size, as readers that map files expect.
    chosen.sort(key=lambda name: -_alignment(tensors.specs[name].dtype))
    with new_file(path) as temporary, temporary.open("wb") as file:
        header = _header_bytes(tensors, chosen)
        file.write(len(header).to_bytes(8, "little") + header)
        for name in chosen:
            _write_array(file, name, tensors, progress)


def write_sharded(
    directory: Path,
    tensors: Tensors,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Writes model.safetensors, or shards of at most `max_shard_size` bytes and their index.

    Returns:
        the names of the files.
    """
    shards = _shards(tensors, max_shard_size)
    if len(shards) == 1:
        write(directory / "model.safetensors", tensors, progress=progress)
        return ["model.safetensors"]
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        write(directory / file, tensors, names, progress)
    index = {
        "metadata": {"total_size": total_bytes(tensors)},
        "weight_map": {n: file for file, names in zip(files, shards, strict=True) for n in names},
    }
    with new_file(directory / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n")
    return [*files, INDEX]


def parse_size(text: str | int, where: str = "max_shard_size") -> int:
    """Bytes of "5GB", "500MB", "2GiB" or a plain number; `where` is named in messages.

    Raises:
        CheckpointError: none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    value = 0
    if match:
        number, unit, binary = match.groups()
        value = int(
            float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " ")
        )
    if value <= 0:
        raise CheckpointError(f"{where}: {text!r} is no size; write for example 5GB or 500MB")
    return value


def blocks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order, in pieces: a transposed view is never copied whole."""
    if array.size == 0:
        return
    if array.ndim == 0:
        array = array.reshape(1)
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        piece = np.ascontiguousarray(array[start : start + rows])
        yield piece.reshape(-1).view(np.uint8).data


def _write_array(file: BinaryIO, name: str, tensors: Tensors, progress: Progress | None) -> None:
    array = tensors.read(name)
    spec = tensors.specs[name]
    assert (array.shape, array.dtype) == spec, f"{name} is {array.shape} {array.dtype}, not {spec}"
    for block in blocks(array):
        file.write(block)
        if progress is not None:
            progress(len(block))


def _alignment(dtype: np.dtype) -> int:
    return dtype.itemsize


def _header_bytes(tensors: Tensors, names: Sequence[str]) -> bytes:
    header: dict[str, Any] = {}
    if tensors.metadata:
        header["__metadata__"] = dict(tensors.metadata)
    offset = 0
    for name in names:
        spec = tensors.specs[name]
        if spec.dtype not in _CODES:
            raise CheckpointError(
                f"{tensors.where}: {name} has type {spec.dtype}, which safetensors lacks; "
                "cast it first"
            )
        header[name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data + b" " * (-len(data) % 8)


def _shards(tensors: Tensors, limit: int | None) -> list[list[str]]:
    """Fills shards in order; a tensor larger than the limit has a shard of its own."""
    shards: list[list[str]] = [[]]
    room = limit or 0
    for name, spec in tensors.specs.items():
        if limit is not None and shards[-1] and spec.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= spec.nbytes
    return shards


def is_shard(path: Path) -> bool:
    """Whether a file is one of several of a model, by an index beside it."""
    for index in path.parent.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if path.name in files and len(files) > 1:
            return True
    return False
