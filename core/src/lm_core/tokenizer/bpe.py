"""Byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019, section 2.2).

A text is cut into words by a regular expression; the UTF-8 bytes of a word are merged pair by pair,
the pair with the lowest rank first and the leftmost of equals. Three things make it fast: the ids
of every short word are kept, the loop over words runs inside the interpreter's C code, and long
words (a megabyte without a space is one word) are merged on a heap in O(n log n).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from typing import Any

import regex

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import Tokenizer
from lm_core.tokenizer.bpe_train import train_bpe
from lm_core.tokenizer.byte_level import WORDS, byte_symbols, symbol_bytes

__all__ = ["ByteLevelBpe", "train_bpe"]

_CUT = regex.compile(r"\S\s")
_CACHED_WORDS = 1 << 18
_CACHED_LENGTH = 48
_LONG_WORD = 200
_NEVER = 1 << 60


class ByteLevelBpe(Tokenizer):
    """Byte-level BPE over a vocabulary and an ordered list of merges."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        special: Mapping[str, int] | None = None,
        add_prefix_space: bool = False,
        **named: Any,
    ) -> None:
        """Builds the tables.

        Args:
            vocab: ids by token, the 256 byte symbols included.
            merges: pairs of tokens, the most important first.
            special: ids of special tokens; they may also stand in `vocab`. None: the named tokens
                (`bos_token` and so on) with their ids in `vocab`.
            add_prefix_space: encode "word" like " word".
            **named: what `Tokenizer` takes.

        Raises:
            TokenizerError: the vocabulary and the merges do not fit each other.
        """
        if special is None:
            tokens = [token for name, token in named.items() if name.endswith("_token")]
            special = {token: vocab[token] for token in tokens if token in vocab}
        super().__init__(special, **named)
        self.vocab = dict(vocab)
        self.merges = [(left, right) for left, right in merges]
        self.add_prefix_space = add_prefix_space
        self._tokens = _by_id(self.vocab)
        self._size = max([*self._tokens, *self.special.values()]) + 1
        self._words = _Words(*_tables(self.vocab, self.merges))
        # A special token that holds white space could be cut in two.
        self._cuttable = not any(regex.search(r"\s", token) for token in self.special)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""
        return self._size

    def cuts_at(self, left: str, right: str) -> bool:
        r"""True between a character that is not white space and one that is.

        No alternative of `WORDS` matches white space after anything else, so a word ends there,
        and the only look-ahead, `\s+(?!\S)`, ends inside the white space. With
        `add_prefix_space` the right part must begin with a space, or it would get one.
        """
        fits = self._cuttable and _CUT.fullmatch(left[-1:] + right[:1]) is not None
        return fits and (not self.add_prefix_space or right[0] == " ")

    def _encode(self, text: str) -> Iterable[int]:
        if self.add_prefix_space and text and text[0] != " ":
            text = " " + text
        return chain.from_iterable(map(self._words.__getitem__, WORDS.findall(text)))

    def _bytes(self, ids: Sequence[int], after: int | None) -> bytes:
        known = symbol_bytes()
        try:
            return bytes(known[symbol] for index in ids for symbol in self._tokens[index])
        except KeyError:  # an added token that is not spelt in byte symbols stands for itself
            return b"".join(_spelt(self._tokens[index]) for index in ids)

    def _id(self, token: str) -> int | None:
        return self.vocab.get(token)

    def _token(self, index: int) -> str | None:
        return self._tokens.get(index)

    def _files(self) -> dict[str, str | bytes]:
        merges = "".join(f"{left} {right}\n" for left, right in self.merges)
        vocab = json.dumps(self.vocab, ensure_ascii=False)
        return {"vocab.json": vocab, "merges.txt": f"#version: 0.2\n{merges}"}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "add_prefix_space": self.add_prefix_space}


class _Words(dict[str, tuple[int, ...]]):
    """Ids by word, computed when first asked for and kept while the word is short."""

    def __init__(
        self, singles: tuple[int, ...], ranks: dict[tuple[int, int], int], merged: list[int]
    ) -> None:
        super().__init__()
        self.singles, self.ranks, self.merged = singles, ranks, merged

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the tables without the words met so far."""
        return _Words, (self.singles, self.ranks, self.merged)

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = [self.singles[byte] for byte in word.encode("utf-8")]
        merge = self._short if len(ids) <= _LONG_WORD else self._long
        result = tuple(merge(ids))
        if len(word) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = result
        return result

    def _short(self, ids: list[int]) -> list[int]:
        """O(n^2) with a very small constant: two C-speed scans of a short list per merge."""
        find, merged = self.ranks.get, self.merged
        ranks = [find(pair, _NEVER) for pair in pairwise(ids)]
        while ranks and (best := min(ranks)) != _NEVER:
            index = ranks.index(best)
            ids[index : index + 2] = (merged[best],)
            del ranks[index]
            if index < len(ranks):
                ranks[index] = find((ids[index], ids[index + 1]), _NEVER)
            if index:
                ranks[index - 1] = find((ids[index - 1], ids[index]), _NEVER)
        return ids

    def _long(self, ids: list[int]) -> list[int]:
        """O(n log n): a heap of rank and position over a linked list of the ids that are left."""
        find, merged = self.ranks.get, self.merged
        end = len(ids)
        after = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        bits = end.bit_length()
        heap = [
            rank << bits | index
            for index, pair in enumerate(pairwise(ids))
            if (rank := find(pair)) is not None
        ]
        heapify(heap)
        where = (1 << bits) - 1
        while heap:
            entry = heappop(heap)
            left = entry & where
            right = after[left]
            # Stale: one of the two was merged since. A dead left is -1 and in no pair.
            if right == end or find((ids[left], ids[right])) != entry >> bits:
                continue
            ids[left] = merged[entry >> bits]
            ids[right] = -1
            follower = after[left] = after[right]
            if follower != end:
                before[follower] = left
                if (rank := find((ids[left], ids[follower]))) is not None:
                    heappush(heap, rank << bits | left)
            leader = before[left]
            if leader >= 0 and (rank := find((ids[leader], ids[left]))) is not None:
                heappush(heap, rank << bits | leader)
        return [index for index in ids if index >= 0]


def _by_id(vocab: Mapping[str, int]) -> dict[int, str]:
    tokens: dict[int, str] = {}
    for token, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise TokenizerError(f"vocabulary: the id of {token!r} is {index!r}; use ids from 0 up")
        if tokens.setdefault(index, token) is not token:
            raise TokenizerError(
                f"vocabulary: {tokens[index]!r} and {token!r} share the id {index}; "
                "each must have its own; use another copy of the file"
            )
    return tokens


def _tables(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> tuple[tuple[int, ...], dict[tuple[int, int], int], list[int]]:
    """Ids of the single bytes, ranks by pair of ids, and merged ids by rank."""
    missing = [symbol for symbol in byte_symbols() if symbol not in vocab]
    if missing:
        raise TokenizerError(
            f"vocabulary: lacks {len(missing)} of the 256 byte symbols, {missing[0]!r} first; "
            f"use the vocab.json of a byte-level BPE"
        )
    ranks: dict[tuple[int, int], int] = {}
    merged = []
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in vocab:
                raise TokenizerError(
                    f"merges: {left!r} {right!r} (number {rank + 1}) needs the token {token!r}, "
                    f"which the vocabulary lacks; use the files of one tokenizer"
                )
        ranks[vocab[left], vocab[right]] = rank
        merged.append(vocab[left + right])
    return tuple(vocab[symbol] for symbol in byte_symbols()), ranks, merged


def _spelt(token: str) -> bytes:
    known = symbol_bytes()
    if all(symbol in known for symbol in token):
        return bytes(known[symbol] for symbol in token)
    return token.encode("utf-8", "replace")
