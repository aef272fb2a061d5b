"""Words that no dictionary has, guessed as jieba does it.

Each Chinese character begins a word, ends one, stands within one or alone; the likeliest row of
these is found by Viterbi's algorithm. Equal scores are common, because everything has the score
`NOWHERE` behind a character that the model never saw; then the state that is later in the alphabet
wins.
"""

from __future__ import annotations

import re
from collections.abc import Container

from lm_core.tokenizer.word_tables import Model

NOWHERE = -3.14e100
_CHINESE = re.compile("([\u4e00-\u9fd5]+)")
_LATIN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_KEPT, _KEPT_LENGTH = 1 << 16, 12
_BEGINS, _ENDS, _INSIDE, _ALONE = "BEMS"


class Guesses(dict[str, list[str]]):
    """Words by run of single characters, guessed when first asked for and kept while short."""

    def __init__(self, known: Container[str], model: Model) -> None:
        """Args: `known` the words of the dictionary."""
        super().__init__()
        self.known, self.model = known, model

    def __missing__(self, run: str) -> list[str]:
        # A run that the dictionary has was taken apart for a reason.
        known = len(run) == 1 or run in self.known
        words = list(run) if known else self._guess(run)
        if len(run) <= _KEPT_LENGTH:
            if len(self) >= _KEPT:
                self.clear()
            self[run] = words
        return words

    def _guess(self, run: str) -> list[str]:
        words: list[str] = []
        for number, part in enumerate(_CHINESE.split(run)):
            if number % 2:
                words += _spans(part, self._states(part))
            else:
                words += filter(None, _LATIN.split(part))
        return words

    def _states(self, part: str) -> str:
        """For each character the state that the likeliest row gives it."""
        model = self.model
        seen, unseen = model.emissions.get, (NOWHERE,) * 4
        eb, sb, be, me, bm, mm, es, ss = model.moves
        first = seen(part[0], unseen)
        b, e, m, s = (start + value for start, value in zip(model.start, first, strict=True))
        back: list[dict[str, str]] = []
        for character in part[1:]:
            at_b, at_e, at_m, at_s = seen(character, unseen)
            # From the two states that may come before, the later in the alphabet second.
            begins = e + eb + at_b, s + sb + at_b
            ends = b + be + at_e, m + me + at_e
            inside = b + bm + at_m, m + mm + at_m
            alone = e + es + at_s, s + ss + at_s
            back.append(
                {
                    _BEGINS: _ALONE if begins[1] >= begins[0] else _ENDS,
                    _ENDS: _INSIDE if ends[1] >= ends[0] else _BEGINS,
                    _INSIDE: _INSIDE if inside[1] >= inside[0] else _BEGINS,
                    _ALONE: _ALONE if alone[1] >= alone[0] else _ENDS,
                }
            )
            b, e, m, s = max(begins), max(ends), max(inside), max(alone)
        states: list[str] = [_ALONE if s >= e else _ENDS]
        for before in reversed(back):
            states.append(before[states[-1]])
        return "".join(reversed(states))


def _spans(part: str, states: str) -> list[str]:
    words: list[str] = []
    begin = 0
    for place, state in enumerate(states):
        if state == _BEGINS:
            begin = place
        elif state == _ENDS:
            words.append(part[begin : place + 1])
        elif state == _ALONE:
            words.append(part[place])
    return words
