"""Beam search over a decoder, with the rules of Hugging Face transformers.

Each step looks at the best continuations of all beams of a prompt: those that end (EOS or length
limit) among the best `num_beams` are finished, the best others go on. So an end never takes the
place of a beam, and prompts of a batch do not touch each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_core.generation.config import GenerationConfig
from lm_core.generation.sampling import check_finite, penalize, top_ids

if TYPE_CHECKING:
    from lm_core.generation.generate import Decoder

NEVER = -1e9
"""Score of a beam that does not exist yet."""


def beam_search(
    decoder: Decoder, prompts: list[np.ndarray], limits: np.ndarray, settings: GenerationConfig
) -> list[np.ndarray]:
    """The best finished beam of each prompt.

    Args:
        decoder: for len(prompts) * num_beams rows.
        prompts: int32 arrays.
        limits: int [B], the length at which a row must stop.
        settings: num_beams, length_penalty, early_stopping, repetition_penalty, EOS.
    """
    width = settings.num_beams
    pairs = zip(prompts, limits, strict=True)
    searches = [Search(prompt, int(limit), settings) for prompt, limit in pairs]
    lengths = np.repeat([len(prompt) for prompt in prompts], width)
    tokens = np.zeros((len(lengths), lengths.max()), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = prompts[row // width]
    logits = decoder.prefill(tokens, lengths)
    last = tokens[np.arange(len(lengths)), lengths - 1]
    while True:
        parents = np.arange(len(lengths))
        for number, search in enumerate(searches):
            if not search.done:
                rows = slice(number * width, (number + 1) * width)
                parents[rows] = search.advance(logits[rows]) + number * width
                last[rows], lengths[rows] = search.tokens[:, search.length - 1], search.length
        if all(search.done for search in searches):
            return [search.finished[0][1] for search in searches]
        decoder.reorder(parents)
        logits = decoder.step(last, lengths - 1)


class Search:
    """The beams of one prompt.

    Attributes:
        tokens: int32 [W, limit], the beams that go on.
        length: how many tokens each of them has.
        scores: float64 [W], their log-probabilities, best first.
        finished: (score, tokens), best first, at most W.
        done: whether finished[0] is the answer.
    """

    def __init__(self, prompt: np.ndarray, limit: int, settings: GenerationConfig) -> None:
        self.settings, self.limit, self.prompt_length = settings, limit, len(prompt)
        self.length = len(prompt)
        self.tokens = np.zeros((settings.num_beams, limit), np.int32)
        self.tokens[:, : self.length] = prompt
        # All beams begin alike: only the first one counts, or they would stay alike.
        self.scores = np.full(settings.num_beams, NEVER)
        self.scores[0] = 0.0
        self.finished: list[tuple[float, np.ndarray]] = []
        self.done = False

    def advance(self, logits: np.ndarray) -> np.ndarray:
        """Adds a token to each beam.

        Args:
            logits: float32 [W, V].

        Returns:
            int [W]: which beam each new beam continues.
        """
        eos, width = self.settings.eos_ids, self.settings.num_beams
        totals = self._log_probabilities(logits) + self.scores[:, None]
        # One beam has at most one end per EOS, so this many continuations hold `width` that go on
        # (or, at the length limit, none).
        best = top_ids(totals.reshape(-1), max(2, 1 + len(eos)) * width)
        parents, new = np.divmod(best, logits.shape[1])
        scores = totals.reshape(-1)[best]
        tokens = self.tokens[parents]
        tokens[:, self.length] = new
        self.length += 1
        ends = np.isin(new, eos) | (self.length == self.limit)
        self._finish(scores[:width], tokens[:width], ends[:width])
        goes_on = np.argsort(ends, kind="stable")[:width]
        self.tokens, self.scores = tokens[goes_on], scores[goes_on]
        self.done = self._is_done(ends)
        return parents[goes_on]

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """[W, V]. The repetition penalty works on them, not on the logits, as in transformers."""
        top = logits.max(axis=-1, keepdims=True)
        check_finite(top)
        shifted = (logits - top).astype(np.float64)
        found = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        penalty = float(self.settings.repetition_penalty)
        if penalty == 1.0:
            return found
        pairs = zip(found, self.tokens, strict=True)
        return np.stack([penalize(row, beam[: self.length], penalty) for row, beam in pairs])

    def _finish(self, scores: np.ndarray, tokens: np.ndarray, ends: np.ndarray) -> None:
        if self.settings.early_stopping is True and self._full():
            return
        share = (self.length - self.prompt_length) ** self.settings.length_penalty
        for row in np.flatnonzero(ends):
            self.finished.append((scores[row] / share, tokens[row, : self.length].copy()))
        self.finished.sort(key=lambda beam: -beam[0])
        del self.finished[self.settings.num_beams :]

    def _full(self) -> bool:
        return len(self.finished) == self.settings.num_beams

    def _is_done(self, ends: np.ndarray) -> bool:
        if ends.all():
            return True
        if not self._full():
            return False
        if self.settings.early_stopping is True:
            return True
        length = self.length
        if self.settings.early_stopping == "never" and self.settings.length_penalty > 0:
            length = self.limit  # a longer answer may still get a better score
        best = self.scores[0] / (length - self.prompt_length) ** self.settings.length_penalty
        return bool(best <= self.finished[-1][0])
