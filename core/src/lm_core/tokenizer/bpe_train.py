"""Learns the merges of a byte-level BPE from text (Sennrich et al. 2016, algorithm 1).

Deterministic: the result depends on how often each word occurs, not on the order of the texts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

from lm_core.errors import TokenizerError
from lm_core.log import progress
from lm_core.tokenizer.byte_level import WORDS, byte_symbols
from lm_core.tokenizer.values import without_surrogates

Pair = tuple[int, int]

# Longer words (base64, rules of dashes) are learnt from in parts, so that one of them cannot be
# scanned thousands of times.
_LONGEST_WORD = 256


class Bpe(NamedTuple):
    """A vocabulary and its merges, as `ByteLevelBpe` takes them."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    min_count: int = 2,
) -> Bpe:
    """Learns a vocabulary: 256 bytes, then merges by falling count, then the special tokens.

    Args:
        texts: any number of texts; words never reach from one into the next.
        vocab_size: size of the result. It is smaller if no pair occurs `min_count` times any more.
        special_tokens: tokens that come last, in this order.
        min_count: the least number of occurrences of a pair that is worth a token.

    Raises:
        TokenizerError: the size has no room for the bytes and the special tokens.
    """
    last = list(special_tokens)
    room = vocab_size - 256 - len(last)
    if room < 0:
        raise TokenizerError(
            f"vocab_size: {vocab_size} has no room for 256 bytes and {len(last)} special tokens; "
            f"use at least {256 + len(last)}"
        )
    words = _Corpus(_count_words(texts))
    # GPT-2 numbers the bytes by their symbols, the printable ones first.
    order = sorted(range(256), key=lambda byte: ord(byte_symbols()[byte]))
    tokens = [byte_symbols()[byte] for byte in order]
    words.renumber({byte: index for index, byte in enumerate(order)})
    merges = []
    with progress(total=room, desc="learning merges", unit="merge") as bar:
        while len(merges) < room and (pair := words.best(min_count)) is not None:
            merges.append((tokens[pair[0]], tokens[pair[1]]))
            words.merge(pair, len(tokens))
            tokens.append("".join(merges[-1]))
            bar.update()
    vocab = {token: index for index, token in enumerate([*tokens, *last])}
    return Bpe(vocab, merges)


def _count_words(texts: Iterable[str]) -> Counter[bytes]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORDS.findall(without_surrogates(text)))
    parts: Counter[bytes] = Counter()
    for word, count in counts.items():
        data = word.encode("utf-8")
        for start in range(0, len(data), _LONGEST_WORD):
            parts[data[start : start + _LONGEST_WORD]] += count
    return parts


class _Corpus:
    """Different words as lists of ids, and how often each pair of neighbours occurs in all."""

    def __init__(self, counts: Counter[bytes]) -> None:
        self.words = [list(word) for word in counts]
        self.counts = list(counts.values())
        self.pairs: dict[Pair, int] = {}
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        self.heap: list[tuple[int, Pair]] = []

    def renumber(self, ids: dict[int, int]) -> None:
        """Writes every byte as its id and counts the pairs."""
        pairs: Counter[Pair] = Counter()
        for index, word in enumerate(self.words):
            word[:] = [ids[byte] for byte in word]
            for pair in pairwise(word):
                pairs[pair] += self.counts[index]
                self.where[pair].add(index)
        self.pairs = dict(pairs)
        self.heap = [(-count, pair) for pair, count in pairs.items()]
        heapify(self.heap)

    def best(self, min_count: int) -> Pair | None:
        """The most frequent pair, the lower ids among equals; None below `min_count`."""
        while self.heap:
            negative, pair = heappop(self.heap)
            count = self.pairs.get(pair, 0)
            if count < min_count:
                continue
            if count == -negative:
                return pair
            heappush(self.heap, (-count, pair))  # counted when the pair was more frequent
        return None

    def merge(self, pair: Pair, new: int) -> None:
        """Replaces `pair` by the id `new` everywhere, from the left."""
        changes: Counter[Pair] = Counter()
        for index in self.where.pop(pair):
            word, count = self.words[index], self.counts[index]
            for old in pairwise(word):
                changes[old] -= count
            _replace(word, pair, new)
            for made in pairwise(word):
                changes[made] += count
                if new in made:
                    self.where[made].add(index)
        for changed, difference in changes.items():
            if difference:
                count = self.pairs[changed] = self.pairs.get(changed, 0) + difference
                if difference > 0:
                    heappush(self.heap, (-count, changed))
        del self.pairs[pair]


def _replace(word: list[int], pair: Pair, new: int) -> None:
    left, right = pair
    index = 0
    end = len(word) - 1
    while index < end:
        if word[index] == left and word[index + 1] == right:
            word[index : index + 2] = (new,)
            end -= 1
        index += 1
