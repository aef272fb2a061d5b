"""Small changes to the bytes of a sentencepiece model, without a protobuf library.

The file is one protobuf message (sentencepiece_model.proto): field 1, repeated, a piece {1: text,
2: score, 3: type}; field 3 how text is normalized {3: whether a space is put before it}. In this
format a later value of a field replaces an earlier one, in parts of a message too, so a change is
bytes that are added; only lengths that enclose them have to be written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator

_PIECE = b"\x0a"  # field 1, with a length
_CONTROL = b"\x18\x03"  # in a piece: field 3, the type, is 3
_NO_SPACE = b"\x1a\x02\x18\x00"  # field 3, 2 bytes: field 3 of that is false


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
