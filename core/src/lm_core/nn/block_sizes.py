"""Which sequences attention reads in blocks, and how it cuts them. Needs no MindSpore."""

from __future__ import annotations

LONG = 4096
"""Longer sequences are read block by block outside of training, asked or not: S^2 probabilities of
32 heads would take 2 GB."""
BANDS = 4
_AT_ONCE = 8 * 1024 * 1024
"""About how many probabilities there are at a time."""
_FEWEST, _MOST = 16, 256


def are_read(length: int, *, asked: bool, dropped: bool, trains: bool) -> bool:
    """Whether sequences of this length are read block by block.

    Args:
        length: S.
        asked: `use_flash_attention`.
        dropped: probabilities are dropped in this pass; blocks know no dropout.
        trains: whether this is a training step.
    """
    return not dropped and (asked or (length > LONG and not trains))


def size(length: int, heads: int) -> int:
    """Queries in a block, so that `heads` rows of probabilities of `length` keys stay small."""
    found = _MOST
    while found > _FEWEST and found * length * heads > _AT_ONCE:
        found //= 2
    return found


def bands(length: int, queries: int) -> tuple[tuple[int, int], ...]:
    """First and last + 1 position of each band, in whole blocks of `queries` but for the end."""
    count = -(-length // queries)
    edges = sorted({-(-count * k // BANDS) for k in range(BANDS + 1)})
    pairs = zip(edges, edges[1:], strict=False)
    return tuple((a * queries, min(b * queries, length)) for a, b in pairs)
