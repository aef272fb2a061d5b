"""MindSpore's .ckpt format, read one tensor at a time and written as a stream.

`mindspore.load_checkpoint` reads a file as one protobuf message, so it needs the memory of the
whole model (and more), and a flipped byte goes unnoticed. The message is a plain list of tensors;
this module finds them in the file without reading their contents, and imports nothing of MindSpore.

    Checkpoint  { repeated Value value = 1; }
    Value       { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

A tensor over 512 MB is several consecutive values of one tag. A file may end in "crc_num" and ten
bytes, the CRC-32 of all before it.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm_core.checkpoint.atomic import new_file
from lm_core.checkpoint.layout.tensors import BFLOAT16, Tensors, TensorSpec
from lm_core.checkpoint.tensorfile import Progress, blocks
from lm_core.errors import CheckpointError

DTYPES = {
    "Float64": np.dtype("<f8"),
    "Float32": np.dtype("<f4"),
    "Float16": np.dtype("<f2"),
    "BFloat16": BFLOAT16,
    "Int64": np.dtype("<i8"),
    "Int32": np.dtype("<i4"),
    "Int16": np.dtype("<i2"),
    "Int8": np.dtype("i1"),
    "UInt64": np.dtype("<u8"),
    "UInt32": np.dtype("<u4"),
    "UInt16": np.dtype("<u2"),
    "UInt8": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CRC = b"crc_num"
_CRC_LENGTH = len(_CRC) + 10
_SLICE = 512 << 20
_BYTES, _VARINT = 2, 0


class CkptFile:
    """A .ckpt file as `Tensors`; text values stand in `metadata`.

    Raises:
        CheckpointError: not such a file, encrypted, cut off, or its CRC does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.where = str(path)
        self.specs: dict[str, TensorSpec] = {}
        self.metadata: Mapping[str, str] = {}
        self._parts: dict[str, list[tuple[int, int]]] = {}
        try:
            with self.path.open("rb") as file:
                if not file.read(1):
                    raise self._damaged("it is empty")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._index(data)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror}); name a file that can"
            ) from error

    def read(self, name: str) -> np.ndarray:
        """Reads the tensor; nothing is mapped or kept."""
        shape, dtype = self.specs[name]
        array = np.empty(shape, dtype)
        flat = array.reshape(-1).view(np.uint8).data
        with self.path.open("rb") as file:
            done = 0
            for start, length in self._parts[name]:
                file.seek(start)
                if file.readinto(flat[done : done + length]) != length:
                    raise self._damaged(f"it ends inside {name}")
                done += length
        return array

    def _index(self, data: mmap.mmap) -> None:
        end = len(data)
        if data[-_CRC_LENGTH : -_CRC_LENGTH + len(_CRC)] == _CRC:
            end -= _CRC_LENGTH
            if _crc(self.path, end) != int.from_bytes(data[-10:], "big"):
                raise self._damaged("its CRC does not fit its contents")
        try:
            for field, kind, start, stop in _fields(data, 0, end):
                if field != 1 or kind != _BYTES:
                    raise ValueError
                self._value(data, start, stop)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._damaged("it is no list of tensors (or it is encrypted)") from error
        for name, spec in self.specs.items():
            found = sum(length for _, length in self._parts[name])
            if found != spec.nbytes:
                raise self._damaged(f"{name} has {found} bytes and needs {spec.nbytes}")

    def _value(self, data: mmap.mmap, start: int, stop: int) -> None:
        parts = {field: (a, b) for field, _, a, b in _fields(data, start, stop)}
        name = data[slice(*parts[1])].decode() if 1 in parts else ""
        if 2 not in parts:
            raise CheckpointError(
                f"{self.path}: {name} is a map of parameters; must be a tensor; "
                "save the tensors alone"
            )
        dims: list[int] = []
        kind, content = "", (stop, stop)
        for field, wire, a, b in _fields(data, *parts[2]):
            if field == 1:
                dims += [_varint(data, a)[0]] if wire == _VARINT else _packed(data, a, b)
            elif field == 2:
                kind = data[a:b].decode()
            elif field == 3:
                content = (a, b)
        if kind == "str":
            self.metadata = {**self.metadata, name: data[slice(*content)].decode("utf-32-le")}
            return
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has type {kind}; lm reads {', '.join(DTYPES)}; "
                f"save it as one of these"
            )
        length = content[1] - content[0]
        # Older files say [0] for a single number.
        shape = () if dims == [0] and length else tuple(dims)
        self.specs[name] = TensorSpec(shape, DTYPES[kind])
        self._parts.setdefault(name, []).append((content[0], length))

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; use another copy of this checkpoint")


def write(path: str | Path, tensors: Tensors, progress: Progress | None = None) -> None:
    """Writes a .ckpt file with its CRC, one tensor at a time; it appears when it is complete."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        crc = 0
        for name in tensors.specs:
            crc = _write_tensor(file, name, tensors, crc, progress)
        file.write(_CRC + crc.to_bytes(10, "big"))


def _write_tensor(
    file: BinaryIO, name: str, tensors: Tensors, crc: int, progress: Progress | None
) -> int:
    """Appends one tensor as values of at most 512 MB (or one row); returns the CRC so far."""
    shape, dtype = tensors.specs[name]
    if dtype not in _NAMES:
        raise CheckpointError(
            f"{tensors.where}: {name} has type {dtype}, which .ckpt files lack; write safetensors"
        )
    dims = b"".join(b"\x08" + _encode_varint(size) for size in shape)
    head = dims + b"\x12" + _sized(_NAMES[dtype].encode())
    array = tensors.read(name).reshape(shape or 1)
    rows = max(1, _SLICE * len(array) // max(array.nbytes, 1))
    for start in range(0, max(len(array), 1), rows):
        part = array[start : start + rows]
        for block in _value_bytes(name, head, part):
            file.write(block)
            crc = zlib.crc32(block, crc)
            if progress is not None and isinstance(block, memoryview):
                progress(len(block))
    return crc


def _value_bytes(name: str, head: bytes, part: np.ndarray) -> Iterator[bytes | memoryview]:
    """The `Value` that holds `part`, its contents as memoryviews."""
    tensor = head + b"\x1a" + _encode_varint(part.nbytes)
    inner = b"\x0a" + _sized(name.encode())
    inner += b"\x12" + _encode_varint(len(tensor) + part.nbytes) + tensor
    yield b"\x0a" + _encode_varint(len(inner) + part.nbytes) + inner
    yield from blocks(part)


def _crc(path: Path, end: int) -> int:
    crc = 0
    # Read, not mapped: mapped pages would count as this process's memory.
    with path.open("rb") as file:
        for start in range(0, end, 1 << 24):
            crc = zlib.crc32(file.read(min(1 << 24, end - start)), crc)
    return crc


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a protobuf message: number, wire type, begin and end of the payload."""
    while start < stop:
        key, start = _varint(data, start)
        kind = key & 7
        if kind == _BYTES:
            length, start = _varint(data, start)
            end = start + length
        elif kind == _VARINT:
            end = _varint(data, start)[1]
        else:
            raise ValueError(f"wire type {kind}")
        if end > stop:
            raise ValueError("a field ends outside its message")
        yield key >> 3, kind, start, end
        start = end


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number has too many bytes")


def _packed(data: mmap.mmap, start: int, stop: int) -> list[int]:
    values = []
    while start < stop:
        value, start = _varint(data, start)
        values.append(value)
    return values


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sized(data: bytes) -> bytes:
    return _encode_varint(len(data)) + data
