"""What a sentencepiece model holds, and small changes to its bytes, without a protobuf library.

The file is one protobuf message (sentencepiece_model.proto): field 1, repeated, a piece {1: text,
2: score, 3: type}; field 2 how it was trained {3: its kind}; field 3 how text is normalized {2: a
table, 3: whether a space is put before it, 4: whether spaces are taken out, 5: whether they are
spelt}. In this format a later value of a field replaces an earlier one, in parts of a message too,
so a change is bytes that are added; only lengths that enclose them have to be written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

_PIECE = b"\x0a"  # field 1, with a length
_CONTROL = b"\x18\x03"  # in a piece: field 3, the type, is 3
_NO_SPACE = b"\x1a\x02\x18\x00"  # field 3, 2 bytes: field 3 of that is false

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Types of pieces."""
_BPE = 2


@dataclass(frozen=True, slots=True)
class Described:
    """What `tokenizer.json` has to say of a model.

    Attributes:
        pieces: text, score and type of each.
        merges: whether pieces are made by merging pairs; otherwise by the likeliest path.
        prefix: whether a space is put before a text.
        plain: whether else texts stay as they are.
    """

    pieces: list[tuple[str, float, int]]
    merges: bool
    prefix: bool
    plain: bool

    @classmethod
    def read(cls, model: bytes) -> Self:
        """Of the bytes that the library has accepted."""
        pieces: list[tuple[str, float, int]] = []
        spec: dict[int, dict[int, Any]] = {2: {}, 3: {}}
        for start, body, end in _fields(model):
            field = model[start] >> 3
            if field == 1:
                found: dict[int, Any] = dict(_values(model[body:end]))
                (score,) = struct.unpack("<f", found.get(2, bytes(4)))
                pieces.append((found[1].decode(), score, found.get(3, NORMAL)))
            elif field in spec:
                spec[field].update(_values(model[body:end]))
        trained, text = spec[2], spec[3]
        plain = not text.get(2) and not text.get(4, 1) and bool(text.get(5, 1))
        return cls(pieces, trained.get(3, 1) == _BPE, bool(text.get(3, 1)), plain)


def without_prefix(model: bytes) -> bytes:
    """The model that puts no space before a text."""
    return model + _NO_SPACE


def with_controls(model: bytes, ids: Collection[int]) -> bytes:
    """The model in which these pieces are control symbols: no text has them, nor merges to them."""
    parts, number = [], 0
    for start, body, end in _fields(model):
        if model[start : start + 1] != _PIECE:
            parts.append(model[start:end])
            continue
        changed = model[body:end] + _CONTROL
        parts.append(_piece(changed) if number in ids else model[start:end])
        number += 1
    return b"".join(parts)


def with_pieces(model: bytes, pieces: Iterable[tuple[str, float]]) -> bytes:
    """The model with ordinary pieces, (text, score), after its own."""
    bodies = (
        b"\x0a" + _number(len(text.encode())) + text.encode() + b"\x15" + struct.pack("<f", score)
        for text, score in pieces
    )
    return model + b"".join(map(_piece, bodies))


def _piece(body: bytes) -> bytes:
    return _PIECE + _number(len(body)) + body


def _fields(model: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, start of the contents, end) of the outer fields; all of them have a length."""
    at = 0
    while at < len(model):
        _, after = _read_number(model, at)
        length, body = _read_number(model, after)
        yield at, body, body + length
        at = body + length


def _values(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers of the fields of a message and what they hold: a number, or bytes."""
    at = 0
    while at < len(message):
        key, at = _read_number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_number(message, at)
            yield key >> 3, value
            continue
        length, at = _read_number(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, message[at : at + length]
        at += length


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that there are more."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_number(model: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while model[at] > 127:
        value |= (model[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | model[at] << shift, at + 1
