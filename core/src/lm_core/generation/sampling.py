"""Choosing the next token from logits, in NumPy: penalty, temperature, top-k, top-p, draw.

Nothing is approximate: top-p works on the whole vocabulary, and ties of top-k go to the lower id.
Nothing is sorted that need not be: a row of 125,000 logits costs about half a millisecond.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lm_core.errors import GenerationError

FEWEST_GROUPS = 1024
SLICES, DEEPEST = 4096, 24.0
"""Top-p sums probabilities in so many slices, down to exp(-24) of the largest."""


def check_finite(largest: np.ndarray | np.generic) -> None:
    """Refuses logits whose largest is infinite or not a number."""
    if not np.isfinite(largest).all():
        raise GenerationError(
            "logits: are not finite; must be numbers; check the checkpoint and compute_dtype"
        )


def penalize(row: np.ndarray, tokens: np.ndarray, penalty: float) -> np.ndarray:
    """A copy of one row of scores in which tokens that occurred are less likely.

    Keskar et al. 2019, section 4.1, with the sign taken care of.

    Args:
        row: [V].
        tokens: int [S], the real tokens so far; each counts once.
        penalty: divides positive scores and multiplies negative ones.
    """
    row = row.copy()
    scores = row[tokens]
    row[tokens] = np.where(scores < 0, scores * penalty, scores / penalty)
    return row


def top_ids(scores: np.ndarray, k: int) -> np.ndarray:
    """The ids of the k largest scores, largest first, of equal ones the lower id first.

    Args:
        scores: [V], no NaN.
        k: at least 1; more than V means V.
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    candidates = np.flatnonzero(scores >= _reached_by(scores, k))
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _reached_by(scores: np.ndarray, k: int) -> np.generic:
    """A value that k scores reach, and hardly more than k.

    The k-th largest of the maxima of many groups is such a value: each of k groups has a score that
    reaches it. Maxima are far cheaper than a partition of all scores.
    """
    groups = max(16 * k, FEWEST_GROUPS)
    rows = len(scores) // groups
    if rows < 4:
        return np.partition(scores, len(scores) - k)[len(scores) - k]
    maxima = scores[: rows * groups].reshape(rows, groups).max(axis=0)
    return np.partition(maxima, groups - k)[groups - k]


def candidates(
    row: np.ndarray, temperature: float, top_k: int, top_p: float
) -> tuple[np.ndarray, np.ndarray]:
    """What may be drawn, and with which weight.

    Args:
        row: float32 [V].
        temperature: divides the logits, above 0.
        top_k: as in GenerationConfig.
        top_p: as in GenerationConfig, applied to what top_k left.

    Returns:
        ids int [n], ascending, and weights float32 [n] in proportion to their probabilities.

    Raises:
        GenerationError: the logits are not finite.
    """
    top = row.max()
    check_finite(top)
    ids = None
    if top_k and top_k < len(row):
        ids = np.sort(top_ids(row, top_k))
        row = row[ids]
    # A temperature below 1e-30 would leave float32; whatever is not the top is impossible anyway.
    with np.errstate(over="ignore", under="ignore"):
        depths = (top - row) / np.float32(max(temperature, 1e-30))
        weights = np.exp(-depths)
    if top_p < 1.0:
        kept = nucleus(depths, weights, top_p)
        return kept if ids is None else ids[kept], weights[kept]
    return np.arange(len(row)) if ids is None else ids, weights


def nucleus(depths: np.ndarray, weights: np.ndarray, top_p: float) -> np.ndarray:
    """The places of the fewest largest weights that reach `top_p` of their sum, ascending.

    Sums by depth tell how deep to go; only the weights around there are sorted.

    Args:
        depths: [n], how far each score is below the largest one.
        weights: [n], exp(-depths).
        top_p: from 0 (one weight) to 1.
    """
    slices = np.minimum(depths * (SLICES / DEEPEST), SLICES - 1).astype(np.intp)
    reached = np.cumsum(np.bincount(slices, weights, minlength=SLICES))
    wanted = top_p * reached[-1]
    edge = min(int(np.searchsorted(reached, wanted)), SLICES - 1)
    inside = slices < edge
    around = np.flatnonzero(slices == edge)
    around = around[np.argsort(depths[around], kind="stable")]
    sums = np.cumsum(weights[around], dtype=np.float64) + (reached[edge - 1] if edge else 0.0)
    inside[around[: np.searchsorted(sums, wanted) + 1]] = True
    return np.flatnonzero(inside)


def draw(ids: np.ndarray, weights: np.ndarray, vocab_size: int, stream: np.random.Generator) -> int:
    """One of the ids, with probability in proportion to its weight.

    An exponential race (the Gumbel trick without logarithms): of arrivals E_i / w_i, each E_i
    exponential with mean 1, the i-th is the first with probability w_i / sum(w). Every id has noise
    of its own, so the rounding that differs between a batch and a single row hardly ever changes a
    draw, not even where it lets another token into the top k; it would shift every later id in a
    running sum.

    Args:
        ids: int [n].
        weights: float [n], not all 0.
        vocab_size: V; the stream gives noise for every id, whatever is left to draw from.
        stream: of this row.
    """
    noise = stream.standard_exponential(vocab_size)[ids]
    return int(ids[np.argmax(weights / noise)])


def streams(prompts: Sequence[np.ndarray], seed: int | None) -> list[np.random.Generator]:
    """A random stream per prompt, for its row alone.

    A stream depends on the seed, the prompt's tokens, and how many equal prompts stand before it in
    the call: neither on the other prompts nor on the place in the batch nor on padding. So a prompt
    gives the same answer alone and in any batch, different prompts draw independently, and a prompt
    given n times gives n independent answers.

    Args:
        prompts: int32 arrays.
        seed: None for streams that never come again.
    """
    seed = secrets.randbits(128) if seed is None else int(seed)
    copies: Counter[bytes] = Counter()
    found = []
    for prompt in prompts:
        tokens = np.ascontiguousarray(prompt, "<i4").tobytes()
        digest = hashlib.blake2b(tokens, digest_size=16).digest()
        entropy = [seed, int.from_bytes(digest, "little"), copies[digest]]
        copies[digest] += 1
        found.append(np.random.Generator(np.random.SFC64(entropy)))
    return found
