"""The dictionary of jieba and its model of unknown words, ready to be asked at once.

What was read is kept for the next process (`lm_core.cache`), without importing jieba there. A
character's words are looked at when a text first has it, which spares short work most of them.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm_core.cache import Arrays, kept

RUN = r"\u4e00-\u9fd5a-zA-Z0-9+#&._%\-"
"""Characters that words of several characters are made of, as a set of a regular expression."""
LONGEST = 32
"""Words of the dictionary are shorter."""
_FORMAT = 1
_OF_RUN = re.compile(f"[{RUN}]")
_STATES = "BEMS"
_MOVES = ("EB", "SB", "BE", "ME", "BM", "MM", "ES", "SS")
_FILES = ("dict.txt", *(f"finalseg/prob_{name}.py" for name in ("start", "trans", "emit")))


class Model(NamedTuple):
    """A hidden Markov model; logarithms of probabilities, states in the order B, E, M, S."""

    start: tuple[float, ...]
    moves: tuple[float, ...]
    """From the first state of each of `_MOVES` to the second."""
    emissions: dict[str, tuple[float, ...]]
    """By character."""


class Dictionary(dict[str, float | None]):
    """What a character weighs alone; None: words never have it.

    Whoever asks for a character gets all words that begin with it into the other tables.

    Attributes:
        weights: logarithms of the frequencies of words.
        pairs: of the first two characters of words; minus infinity where they are no word.
        longer: the lengths of the words with these first three characters, ascending.
        rare: what a character weighs that is no word; the very object that it has here, which is
            that of no word.
    """

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.pairs: dict[str, float] = {}
        self.longer: dict[str, list[int]] = {}
        self.rare = float(arrays["rare"][0])
        firsts, groups = _text(arrays["firsts"]), _text(arrays["words"]).split("\0")
        self._groups = dict(zip(firsts, groups, strict=True))
        self._places = dict(zip(firsts, pairwise([0, *arrays["ends"].tolist()]), strict=True))
        self._values = arrays["weights"]

    def __missing__(self, character: str) -> float | None:
        if character in self._groups:
            self._learn(character)
        rare = self.rare if _OF_RUN.match(character) else None
        value = self[character] = self.weights.get(character, rare)
        return value

    def _learn(self, character: str) -> None:
        begin, end = self._places[character]
        words = self._groups[character].split("\n")
        values = self._values[begin:end].tolist()
        self.weights.update(zip(words, values, strict=True))
        pairs, longer = self.pairs, self.longer
        for word, value in zip(words, values, strict=True):  # the shortest first
            if len(word) == 2:
                pairs[word] = value
            elif len(word) > 2:
                pairs.setdefault(word[:2], float("-inf"))
                lengths = longer.setdefault(word[:3], [])
                if len(word) not in lengths:
                    lengths.append(len(word))


def read() -> tuple[Dictionary, Model]:
    """The tables of the jieba that is installed."""
    found = find_spec("jieba")
    assert found is not None and found.origin is not None, "lm-core depends on it"
    folder = Path(found.origin).parent
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((folder / name).read_bytes())
    name = f"words-{_FORMAT}-{digest.hexdigest()[:32]}"
    arrays = kept(name, partial(_arrays, folder / _FILES[0]))
    emissions = map(tuple, arrays["emissions"].tolist())
    return Dictionary(arrays), Model(
        tuple(arrays["start"].tolist()),
        tuple(arrays["moves"].tolist()),
        dict(zip(_text(arrays["characters"]), emissions, strict=True)),
    )


def _arrays(dictionary: Path) -> Arrays:
    counts, total = _counts(dictionary.read_text(encoding="utf-8"))
    groups: dict[str, list[str]] = {}
    for word in sorted(counts, key=len):
        groups.setdefault(word[0], []).append(word)
    logtotal = log(total)  # the difference of two logarithms, rounded as jieba's is
    logs = {count: log(count) - logtotal for count in {1, *counts.values()}}
    weights = [logs[counts[word]] for group in groups.values() for word in group]
    return {
        "firsts": _bytes(groups),
        "words": _bytes("\0".join(map("\n".join, groups.values()))),
        "ends": np.cumsum([len(group) for group in groups.values()]),
        "weights": np.array(weights),
        "rare": np.array([logs[1]]),
        **_model(),
    }


def _counts(text: str) -> tuple[dict[str, int], int]:
    """How often each word was met that can be found, and the sum over all."""
    counts: dict[str, int] = {}
    total = 0
    for line in filter(None, text.split("\n")):
        word, count, *_ = line.split(" ", 2)
        counts[word] = number = int(count)
        total += number
    assert max(map(len, counts)) < LONGEST
    # A run ends at such a character, so words that have one are never found.
    others = [c for c in set("".join(counts)) if not _OF_RUN.match(c)]
    barred = {word for character in others for word in counts if character in word}
    return {word: n for word, n in counts.items() if n and word not in barred}, total


def _model() -> Arrays:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba has escapes that newer Pythons warn of
        from jieba.finalseg import MIN_FLOAT, emit_P, start_P, trans_P

    characters = sorted(set().union(*(emit_P[state] for state in _STATES)))
    emissions = [[emit_P[state].get(c, MIN_FLOAT) for state in _STATES] for c in characters]
    return {
        "start": np.array([start_P[state] for state in _STATES]),
        "moves": np.array([trans_P[first][second] for first, second in _MOVES]),
        "characters": _bytes(characters),
        "emissions": np.array(emissions),
    }


def _bytes(texts: Iterable[str]) -> np.ndarray:
    return np.frombuffer("".join(texts).encode(), np.uint8)


def _text(array: np.ndarray) -> str:
    return array.tobytes().decode()
