"""Beam search against an exhaustive search, and against the greedy and the batch laws."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lm_core.generation.generate import generate


def log_probabilities(model, tokens, penalty=1.0) -> np.ndarray:
    logits = model.logits(np.array(tokens)).astype(np.float64)
    found = logits - np.log(np.exp(logits).sum())
    for token in set(tokens):
        found[token] *= penalty  # they are negative
    return found


def exhaustive(model, prompt, limit, eos, length_penalty) -> tuple[float, list[int]]:
    """The best of all answers that end in an EOS or at the limit."""
    best = (-np.inf, [])
    longest = limit - len(prompt)
    for length in range(1, longest + 1):
        for answer in product(range(model.vocab), repeat=length):
            if any(token in eos for token in answer[:-1]) or (
                length < longest and answer[-1] not in eos
            ):
                continue
            score, tokens = 0.0, list(prompt)
            for token in answer:
                score += log_probabilities(model, tokens)[token]
                tokens.append(token)
            best = max(best, (score / length**length_penalty, tokens))
    return best


@pytest.mark.parametrize("eos", [[], [0], [0, 2]])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_wide_beams_find_the_best_answer(fake, eos, length_penalty):
    """With a beam per possible prefix and no early end, beam search is exhaustive."""
    for seed in range(6):
        model = fake(vocab=4, positions=8, seed=seed)
        _, expected = exhaustive(model, [1], 5, eos, length_penalty)
        (found,) = generate(
            model,
            [1],
            max_length=5,
            num_beams=4**4,
            eos_token_id=eos,
            length_penalty=length_penalty,
            early_stopping="never",
        )
        assert found.tolist() == expected


def naive_beams(model, prompt, limit, width, penalty=1.0) -> list[int]:
    """Without an EOS: keep the `width` best prefixes, step by step."""
    beams = [(0.0, list(prompt))]
    while len(beams[0][1]) < limit:
        longer = [
            (score + more, [*tokens, token])
            for score, tokens in beams
            for token, more in enumerate(log_probabilities(model, tokens, penalty))
        ]
        beams = sorted(longer, key=lambda beam: -beam[0])[:width]
    return beams[0][1]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_without_eos_it_is_the_plain_algorithm(fake, penalty):
    rng = np.random.default_rng(0)
    for seed in range(10):
        model = fake(seed=seed)
        prompts = [rng.integers(0, 31, rng.integers(1, 8)).tolist() for _ in range(3)]
        width = int(rng.integers(2, 5))
        found = generate(model, prompts, max_length=12, num_beams=width, repetition_penalty=penalty)
        assert [row.tolist() for row in found] == [
            naive_beams(model, prompt, 12, width, penalty) for prompt in prompts
        ]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, -0.5])
def test_batches_equal_each_prompt_alone(fake, early_stopping, length_penalty):
    rng = np.random.default_rng(1)
    for seed in range(8):
        model = fake(seed=seed)
        prompts = [rng.integers(0, 31, rng.integers(1, 9)).tolist() for _ in range(4)]
        options = {
            "max_new_tokens": 9,
            "num_beams": 3,
            "eos_token_id": rng.choice(31, 6, replace=False).tolist(),
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
        }
        batch = [row.tolist() for row in generate(model, prompts, **options)]
        assert batch == [generate(model, prompt, **options)[0].tolist() for prompt in prompts]
        for prompt, row in zip(prompts, batch, strict=True):
            answer = row[len(prompt) :]
            assert row[: len(prompt)] == prompt
            assert not set(answer[:-1]) & set(options["eos_token_id"])
            assert answer[-1] in options["eos_token_id"] or len(answer) == min(9, 24 - len(prompt))


def test_early_stopping_stops_earlier(fake):
    steps = {}
    for early_stopping in (True, False, "never"):
        model = fake(seed=3)
        generate(
            model,
            [1],
            max_length=24,
            num_beams=3,
            eos_token_id=list(range(15)),
            early_stopping=early_stopping,
        )
        steps[early_stopping] = model.opened[0].steps
    assert steps[True] <= steps[False] <= steps["never"]
    assert steps[True] < steps["never"]


def test_more_eos_than_beams_still_leaves_beams(fake):
    model = fake(seed=5)
    eos = list(range(1, 31))
    (row,) = generate(
        model,
        [2],
        max_length=20,
        num_beams=3,
        eos_token_id=eos,
        early_stopping="never",
        length_penalty=5.0,
    )
    assert row[-1] in eos or len(row) == 20


def test_a_vocabulary_smaller_than_the_beams(fake):
    model = fake(vocab=2, positions=6)
    (row,) = generate(model, [0], max_length=4, num_beams=5)
    assert row.tolist() == exhaustive(model, [0], 4, [], 1.0)[1]


def test_one_new_token(fake):
    model = fake()
    (row,) = generate(model, [1, 2], max_new_tokens=1, num_beams=4)
    assert row.tolist() == [1, 2, int(model.logits(np.array([1, 2])).argmax())]
