"""The alphabet and the words of GPT-2's byte-level BPE."""

from __future__ import annotations

from functools import cache

import regex

# The original's expression. Possessive repeats match the same text (the classes on both sides of
# each repeat are disjoint) and keep the engine from saving a backtracking point per character.
WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
)


@cache
def byte_symbols() -> tuple[str, ...]:
    """The printable character by which vocab.json and merges.txt write each byte 0..255."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in set(shown))
    symbols = {byte: chr(byte) for byte in shown}
    symbols.update((byte, chr(256 + index)) for index, byte in enumerate(hidden))
    return tuple(symbols[byte] for byte in range(256))


@cache
def symbol_bytes() -> dict[str, int]:
    """The reverse of `byte_symbols`."""
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}
