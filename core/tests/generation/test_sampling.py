"""Filters against brute force, draws against exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation import sampling


def ranked(scores: np.ndarray) -> list[int]:
    """Ids from the largest score to the smallest; of equal ones the lower id first."""
    return sorted(range(len(scores)), key=lambda token: (-float(scores[token]), token))


def brute_force(row: np.ndarray, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """Probabilities of the tokens that may be drawn, in float64, by the definition."""
    order = ranked(row)[: top_k or len(row)]
    weights = np.exp((row[order].astype(np.float64) - float(row[order[0]])) / temperature)
    weights /= weights.sum()
    kept, total = 0, 0.0
    while kept == 0 or (kept < len(order) and (total < top_p or top_p == 1)):
        total += weights[kept]
        kept += 1
    shares = weights[:kept] / weights[:kept].sum()
    return dict(zip(order[:kept], shares.tolist(), strict=True))


def random_row(rng: np.random.Generator) -> np.ndarray:
    size = int(rng.choice([1, 2, 7, 300, 5000, 40_000]))
    row = rng.standard_normal(size) * rng.choice([0.01, 1.0, 10.0])
    if rng.random() < 0.5:
        row = row.round(1)  # many ties
    if rng.random() < 0.3:
        row[rng.random(size) < 0.5] = -np.inf
        row[rng.integers(size)] = 1.0
    return row.astype(np.float32)


def test_top_ids_against_a_full_sort():
    rng = np.random.default_rng(0)
    for _ in range(150):
        row = random_row(rng)
        k = int(rng.choice([1, 2, 5, 50, 700, len(row), len(row) + 3]))
        assert sampling.top_ids(row, k).tolist() == ranked(row)[:k]


def test_top_ids_takes_exactly_k_of_equal_scores():
    assert sampling.top_ids(np.zeros(100_000, np.float32), 3).tolist() == [0, 1, 2]
    row = np.array([1, 3, 2, 3, 3, 0], np.float32)
    assert sampling.top_ids(row, 2).tolist() == [1, 3]
    assert sampling.top_ids(row, 4).tolist() == [1, 3, 4, 2]


def test_candidates_against_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(200):
        row = random_row(rng)
        temperature = float(rng.choice([0.3, 1.0, 2.5]))
        top_k = int(rng.choice([0, 1, 3, 50, 10_000]))
        top_p = float(rng.choice([0.0, 0.123, 0.5, 0.9, 0.99999, 1.0]))
        expected = brute_force(row, temperature, top_k, top_p)
        ids, weights = sampling.candidates(row, temperature, top_k, top_p)
        assert (np.diff(ids) > 0).all()
        found = dict(
            zip(ids.tolist(), (weights / weights.sum(dtype=np.float64)).tolist(), strict=True)
        )
        # A token whose running sum is top_p up to rounding may be in or out.
        fewest = brute_force(row, temperature, top_k, top_p * (1 - 1e-6))
        most = brute_force(row, temperature, top_k, min(top_p * (1 + 1e-6), 1.0))
        assert set(fewest) <= set(found) <= set(most), (temperature, top_k, top_p)
        if found.keys() == expected.keys():
            shares, exact = (np.array([one[token] for token in found]) for one in (found, expected))
            assert (np.abs(shares - exact) <= np.maximum(2e-5 * exact, 1e-6)).all()


def test_top_p_is_exact_over_the_whole_vocabulary():
    """A distribution so flat that thousands of tokens are needed: the 200 best hold 0.4 %."""
    row = np.zeros(50_000, np.float32)
    ids, _ = sampling.candidates(row, 1.0, 0, 0.5)
    assert ids.tolist() == list(range(25_000))
    row[40_000:] = 0.01
    ids, _ = sampling.candidates(row, 1.0, 0, 0.1)
    assert (
        ids[0] == 40_000
        and abs(len(ids) - 0.1 * (40_000 + 10_000 * np.exp(0.01)) / np.exp(0.01)) <= 1
    )


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
@pytest.mark.parametrize("top_k", [0, 3])
def test_top_p_keeps_one_token(top_p, top_k):
    row = np.array([0.0, 2.0, 2.0, 1.0, -5.0], np.float32)
    assert sampling.candidates(row, 1.0, top_k, top_p)[0].tolist() == [1]


def test_top_p_boundaries():
    """Probabilities 1/2, 1/4, 1/8, 1/8 are exact in binary: "reach" includes equality."""
    row = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float64)).astype(np.float32)
    for top_p, expected in ((0.4, [1]), (0.51, [1, 3]), (0.76, [0, 1, 3]), (0.99, [0, 1, 2, 3])):
        assert sampling.candidates(row, 1.0, 0, top_p)[0].tolist() == expected
    depths, weights = np.array([0.0, 0.0, 1.0, 2.0]), np.array([2.0, 2.0, 1.0, 1.0])
    assert sampling.nucleus(depths, weights, 4 / 6).tolist() == [0, 1]
    assert sampling.nucleus(depths, weights, 5 / 6).tolist() == [0, 1, 2]


def drawn(row, count, seed=11, **options) -> list[int]:
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    stream = np.random.default_rng(seed)
    ids, weights = sampling.candidates(row, **settings)
    return [sampling.draw(ids, weights, len(row), stream) for _ in range(count)]


def test_extreme_temperatures():
    row = np.array([1.0, 1.5, -1e30, 1.4999], np.float32)
    for temperature in (1e-300, 1e-40, 1e-6):
        assert set(drawn(row, 200, temperature=temperature)) == {1}
    row = np.array([0.0, 5.0], np.float32)
    assert abs(sum(drawn(row, 10_000, temperature=1e6)) - 5000) < 200


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_refused(bad):
    row = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(GenerationError, match="not finite"):
        sampling.candidates(row, 1.0, 2, 1.0)


def test_all_tokens_forbidden_is_refused():
    with pytest.raises(GenerationError, match="not finite"):
        sampling.candidates(np.full(4, -np.inf, np.float32), 1.0, 0, 1.0)


def test_what_is_impossible_is_never_drawn():
    row = np.full(1000, -np.inf, np.float32)
    row[700], row[701] = 3.0, 3.0
    assert set(drawn(row, 100)) == {700, 701}
    assert set(drawn(row, 100, top_k=5)) == {700, 701}
    assert set(drawn(row, 100, top_k=1)) == {700}


def test_rounding_hardly_ever_changes_a_draw():
    """Logits that differ as those of a batch and of a single row do: by a few 1e-6."""
    rng = np.random.default_rng(4)
    for options in ({"top_k": 50, "top_p": 0.9}, {"top_k": 0}, {"top_k": 7}):
        changed = 0
        for seed in range(600):
            row = (rng.standard_normal(3000) * 0.5).astype(np.float32)
            near = row + rng.uniform(-5e-6, 5e-6, row.shape).astype(np.float32)
            changed += drawn(row, 1, seed, **options) != drawn(near, 1, seed, **options)
        assert changed <= 1, options


def test_a_token_that_leaves_the_top_k_takes_only_its_own_draws_along():
    row = (np.random.default_rng(6).standard_normal(500) * 0.3).astype(np.float32)
    last = sampling.top_ids(row, 20)[-1]
    less = row.copy()
    less[last] -= 1.0
    before = drawn(row, 5000, top_k=20)
    after = drawn(less, 5000, top_k=20)
    new = sampling.top_ids(less, 20)[-1]
    assert new != last
    for old, now in zip(before, after, strict=True):
        assert old in (now, last) or now == new
    assert before.count(last) > 0


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Standardised: about normal(0, 1) when the counts come from the probabilities."""
    expected = counts.sum() * probabilities
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 8, 1.0), (1.0, 0, 0.8), (0.9, 20, 0.9)],
)
def test_draws_follow_the_exact_distribution(temperature, top_k, top_p):
    row = (np.random.default_rng(5).standard_normal(40) * 1.5).astype(np.float32)
    exact = brute_force(row, temperature, top_k, top_p)
    found = drawn(row, 40_000, temperature=temperature, top_k=top_k, top_p=top_p)
    counts = np.bincount(found, minlength=40)
    assert set(np.flatnonzero(counts)) <= set(exact)
    tokens = list(exact)
    distance = chi_square(counts[tokens], np.array([exact[token] for token in tokens]))
    assert abs(distance) < 4


def first_draws(prompts, seed, count=4):
    rows = [np.array(prompt, np.int32) for prompt in prompts]
    return [tuple(stream.random(count)) for stream in sampling.streams(rows, seed)]


def test_a_stream_depends_on_its_own_prompt_only():
    alone = first_draws([[4, 5]], 7)[0]
    assert first_draws([[1], [4, 5], [2, 3, 4]], 7)[1] == alone
    assert first_draws([[4, 5], [9]], 7)[0] == alone
    assert first_draws([[4, 5]], 8)[0] != alone
    assert first_draws([[5, 4]], 7)[0] != alone
    assert first_draws([[4, 5, 0]], 7)[0] != alone


def test_equal_prompts_draw_independently():
    draws = first_draws([[4, 5]] * 50, 0)
    assert len(set(draws)) == 50
    assert first_draws([[4, 5], [6], [4, 5]], 0) == [draws[0], first_draws([[6]], 0)[0], draws[1]]


def test_streams_are_independent_across_prompts_and_copies():
    """First draws of many streams are uniform: 20 bins, chi-square."""
    for prompts in ([[token] for token in range(4000)], [[3]] * 4000):
        firsts = np.array(first_draws(prompts, 1, count=1))[:, 0]
        counts = np.bincount((firsts * 20).astype(int), minlength=20)
        assert abs(chi_square(counts, np.full(20, 0.05))) < 4


def test_without_a_seed_every_call_is_new():
    assert first_draws([[1]], None) != first_draws([[1]], None)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**80, np.int64(5)])
def test_any_seed_repeats(seed):
    assert first_draws([[1, 2]], seed) == first_draws([[1, 2]], seed)


def test_penalty():
    row = np.array([2.0, -2.0, 0.0, 3.0, -1.0], np.float32)
    found = sampling.penalize(row, np.array([0, 1, 1, 0, 2]), 2.0)
    assert found.tolist() == [1.0, -4.0, 0.0, 3.0, -1.0]
    assert row.tolist() == [2.0, -2.0, 0.0, 3.0, -1.0]
    assert sampling.penalize(row, np.array([3, 4]), 0.5).tolist() == [2.0, -2.0, 0.0, 6.0, -0.5]
