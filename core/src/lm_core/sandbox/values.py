"""Plain values as lines of JSON, between a judge and a program that it does not trust.

Reading makes nothing but values of Python's own plain types, whatever is in the line.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO

LONGEST = 32 << 20
"""Bytes of a line."""
_MOST = 1 << 20
"""Items that are taken out of an iterator, which may have no end."""
_SMALL = 1 << 53


class Opaque:
    """Stands for an object of a class that is not known here; equals nothing else."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


_LISTED: tuple[type, ...] = (tuple, set, frozenset, deque)
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


def encode(value: Any) -> Any:
    """A value as JSON: lists, texts, small numbers as they are, others `{kind: content}`.

    An object of a subclass becomes one of its plain base: a Counter a dictionary, a named tuple a
    tuple.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    return {"opaque": type(value).__name__}


def _number(value: int) -> Any:
    value = int(value)
    return value if abs(value) < _SMALL else {"int": hex(value)}


def _listed(kind: type) -> Callable[[Any], Any]:
    return lambda value: {kind.__name__: [encode(item) for item in value]}


def _taken(value: Any) -> Any:
    return {"iterator": [encode(item) for _, item in zip(range(_MOST), value, strict=False)]}


_WRITERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, _number),
    (float, float.__float__),
    (list, lambda value: [encode(item) for item in value]),
    (dict, lambda value: {"dict": [[encode(k), encode(v)] for k, v in value.items()]}),
    *((kind, _listed(kind)) for kind in _LISTED),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
    ((bytes, bytearray), lambda value: {"bytes": bytes(value).hex()}),
    (range, lambda value: {"range": [value.start, value.stop, value.step]}),
    (Fraction, lambda value: {"Fraction": [_number(value.numerator), _number(value.denominator)]}),
    (Decimal, lambda value: {"Decimal": str(value)}),
    (_VIEWS, _listed(list)),
    (Iterator, _taken),
)


def decode(data: Any) -> Any:
    """The value of `encode`.

    Raises:
        ValueError: the data is none that `encode` makes.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1 or next(iter(data)) not in _READERS:
        raise ValueError("no value")
    kind, content = next(iter(data.items()))
    try:
        return _READERS[kind](content)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(str(error)) from error


def _made(kind: type) -> Callable[[Any], Any]:
    return lambda content: kind([decode(item) for item in content])


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "dict": lambda pairs: {decode(key): decode(value) for key, value in pairs},
    **{kind.__name__: _made(kind) for kind in (list, *_LISTED)},
    "iterator": lambda items: iter([decode(item) for item in items]),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "range": lambda parts: range(*parts),
    "Fraction": lambda parts: Fraction(*map(decode, parts)),
    "Decimal": Decimal,
    "opaque": lambda kind: Opaque(str(kind)),
}


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Writes a line."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Reads a line.

    Raises:
        EOFError: the other end is gone.
        ValueError: the line is too long or no message.
    """
    line = stream.readline(LONGEST)
    if not line:
        raise EOFError
    if not line.endswith(b"\n"):
        raise ValueError("the answer is too long")
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no message")
    return found
