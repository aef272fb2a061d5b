"""A language model that needs no network: logits are a function of all tokens before."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.generation import generate as loop


def logits_after(tokens: np.ndarray, vocab: int, seed: int, scale: float = 3.0) -> np.ndarray:
    """float32 [V]: random numbers that depend on every token and its place."""
    entropy = [seed, len(tokens), *(int(token) for token in tokens)]
    return np.random.default_rng(entropy).standard_normal(vocab).astype(np.float32) * np.float32(
        scale
    )


class FakeDecoder:
    """Keeps tokens as a cache keeps keys, and is strict about what it is fed."""

    def __init__(self, model: FakeModel, rows: int, capacity: int) -> None:
        self.model, self.rows, self.capacity = model, rows, capacity
        self.cache: list[np.ndarray] = []
        self.steps = 0
        model.opened.append(self)

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        assert input_ids.shape[0] == self.rows == len(lengths)
        assert input_ids.shape[1] == lengths.max() <= self.capacity
        assert lengths.min() >= 1
        self.cache = [row[:length].copy() for row, length in zip(input_ids, lengths, strict=True)]
        return self._logits()

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        assert tokens.shape == positions.shape == (self.rows,)
        self.steps += 1
        for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            assert 0 <= position < self.capacity
            held = self.cache[row]
            if position < len(held):  # only a finished row is fed again, and nothing new
                assert position == len(held) - 1 and held[position] == token
            else:
                assert position == len(held), "a gap in the cache"
                self.cache[row] = np.append(held, token)
        return self._logits()

    def reorder(self, index: np.ndarray) -> None:
        self.cache = [self.cache[parent].copy() for parent in index]

    def _logits(self) -> np.ndarray:
        found = np.stack([self.model.logits(row) for row in self.cache])
        found.flags.writeable = False
        return found


class GreedyFakeDecoder(FakeDecoder):
    """Also finds the most likely token by itself; its `step` must then not be used for greedy."""

    def step_greedy(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.model.greedy_steps += 1
        return super().step(tokens, positions).argmax(-1).astype(np.int32)


@dataclass
class FakeModel:
    vocab: int = 31
    positions: int = 24
    seed: int = 0
    decoder: type[FakeDecoder] = FakeDecoder
    settings: dict = field(default_factory=dict)
    opened: list[FakeDecoder] = field(default_factory=list)
    greedy_steps: int = 0

    @property
    def config(self) -> SimpleNamespace:
        values = {
            "vocab_size": self.vocab, "seq_length": self.positions, "eos_token_id": None,
            "bos_token_id": None, "pad_token_id": None,
            "do_sample": False, "top_k": 50, "top_p": 1.0, "temperature": 1.0,
            "repetition_penalty": 1.0, "num_beams": 1, "use_past": True, "max_length": None,
            "max_decode_length": None, "max_new_tokens": None,
        }  # fmt: skip
        values |= self.settings
        eos = values["eos_token_id"]
        values["eos_token_ids"] = [] if eos is None else eos if isinstance(eos, list) else [eos]
        return SimpleNamespace(**values)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return logits_after(tokens, self.vocab, self.seed)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """`fake(vocab=, positions=, seed=, eos_token_id=...)` makes a model that `generate` can run."""

    def make(decoder: type[FakeDecoder] = FakeDecoder, **options) -> FakeModel:
        names = {"vocab", "positions", "seed"}
        own = {name: options.pop(name) for name in names & set(options)}
        return FakeModel(**own, decoder=decoder, settings=options)

    monkeypatch.setattr(
        loop,
        "open_decoder",
        lambda model, rows, length, use_past: model.decoder(model, rows, length),
    )
    return make


@pytest.fixture
def greedy_decoder() -> type[FakeDecoder]:
    return GreedyFakeDecoder
