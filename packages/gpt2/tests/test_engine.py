"""Many requests in one batch give what `generate` gives for each alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from kept import Kept

from lm_core.generation.config import GenerationConfig
from lm_core.generation.prompts import fit
from lm_core.generation.sampling import streams
from lm_core.generation.slots import Slots
from lm_core.serving.engine import Answer, Engine
from lm_core.testing import tiny
from lm_gpt2 import SPEC

CONTEXT, ROWS = 96, 3


@pytest.fixture(scope="module")
def model():
    return tiny.model(
        SPEC, num_layers=2, hidden_size=16, num_heads=2, vocab_size=61, seq_length=CONTEXT
    )


@pytest.fixture(scope="module")
def engine(model):
    engine = Engine(Slots(model, ROWS, CONTEXT), max_queue=40)
    engine.start()
    yield engine
    engine.close()


def answer(model, prompt, best=None, most=1000, **options) -> Answer:
    settings = GenerationConfig.from_model(model.config, **options).completed(model.config)
    (row,), (limit,) = fit([np.array(prompt, np.int32)], settings, CONTEXT)
    stream = streams([row], settings.seed)[0] if settings.do_sample else None
    return Answer(row, int(limit), settings, Kept(most), stream, best)


def expected(model, prompt, **options) -> list[int]:
    eos = options.get("eos_token_id") or []
    found = model.generate(prompt, **options)[0][len(prompt) :].tolist()
    return found[:-1] if found[-1] in eos else found


def requests(count: int) -> list[tuple[list[int], dict]]:
    """Prompts of many lengths, greedy and drawn, with and without a penalty and an end."""
    rng = np.random.default_rng(5)
    kinds = [
        {},
        {"do_sample": True, "temperature": 1.4, "top_k": 0, "seed": 11},
        {"do_sample": True, "top_p": 0.8, "top_k": 20, "seed": 0},
        {"repetition_penalty": 1.4},
        {"do_sample": True, "seed": 1, "eos_token_id": list(range(0, 61, 4))},
    ]
    found = []
    for number in range(count):
        prompt = rng.integers(0, 61, rng.integers(1, 60)).tolist()
        new = {"max_new_tokens": int(rng.integers(1, 40)), "eos_token_id": []}
        found.append((prompt, {**new, **kinds[number % len(kinds)]}))
    return found


def test_each_request_gets_what_it_would_get_alone(model, engine):
    asked = requests(20)
    answers = [answer(model, prompt, **options) for prompt, options in asked]
    for one in answers:
        engine.submit([one])
    found = [one.reader.wait() for one in answers]
    assert found == [expected(model, prompt, **options) for prompt, options in asked]
    reasons = {one.reader.reason for one in answers}
    assert reasons == {"length", "stop"}
    assert engine.wait_idle(5) and engine.places.free == ROWS


def test_a_request_alone_one_that_joins_and_one_that_is_left(model, engine):
    """Keys and values move from the single row to the batch and back."""
    long, short = ([5, 6, 7], {"max_new_tokens": 80}), ([9], {"max_new_tokens": 4})
    first = answer(model, long[0], eos_token_id=[], **long[1])
    second = answer(model, short[0], eos_token_id=[], **short[1])
    joined = threading.Event()

    def token(token, chances):
        Kept.token(first.reader, token, chances)
        if len(first.reader.tokens) == 20:
            engine.submit([second])
            joined.set()
        return False

    first.reader.token = token
    engine.submit([first])
    assert joined.wait(30)
    second.reader.wait()
    assert len(first.reader.tokens) < 30
    first.reader.wait()
    # Only now: MindSpore belongs to one thread at a time.
    assert second.reader.tokens == expected(model, short[0], eos_token_id=[], **short[1])
    assert first.reader.tokens == expected(model, long[0], eos_token_id=[], **long[1])


def test_chances_are_those_of_the_model(model, engine):
    from mindspore import Tensor

    prompt = [4, 5, 6]
    one = answer(model, prompt, best=2, max_new_tokens=3, eos_token_id=[], repetition_penalty=2.0)
    engine.submit([one])
    tokens = one.reader.wait()
    whole = model(Tensor(np.array([prompt + tokens], np.int32))).asnumpy()[0].astype(np.float64)
    for place, (token, chances) in enumerate(zip(tokens, one.reader.chances, strict=True)):
        row = whole[len(prompt) - 1 + place]
        exact = row - np.log(np.exp(row).sum())
        assert chances.own == pytest.approx(exact[token], abs=1e-4)
        assert [index for index, _ in chances.best] == np.argsort(-exact)[:2].tolist()
        values = [value for _, value in chances.best]
        assert values == pytest.approx(np.sort(exact)[:-3:-1], abs=1e-4)


def test_a_reader_may_end_its_answer_and_nobody_elses(model, engine):
    options = {"max_new_tokens": 30, "eos_token_id": []}
    stopped, other = answer(model, [1], most=4, **options), answer(model, [2], **options)
    engine.submit([stopped, other])
    stopped.reader.wait(), other.reader.wait()
    assert stopped.reader.tokens == expected(model, [1], **options)[:4]
    assert other.reader.tokens == expected(model, [2], **options)
    assert (stopped.reader.reason, other.reader.reason) == ("stop", "length")


def test_who_goes_away_makes_room(model, engine):
    options = {"max_new_tokens": 90, "eos_token_id": []}
    first = [answer(model, [number], **options) for number in range(ROWS)]
    last = answer(model, [50], max_new_tokens=2, eos_token_id=[])
    never = answer(model, [51], **options)
    engine.submit([*first, last, never])
    engine.cancel([first[1], never])
    for one in (*first, last, never):
        one.reader.wait()
    assert last.reader.tokens == expected(model, [50], max_new_tokens=2, eos_token_id=[])
    assert (first[1].reader.reason, never.reader.reason) == ("cancelled", "cancelled")
    assert len(first[1].reader.tokens) < 90 and never.reader.tokens == []
    assert first[0].reader.tokens == expected(model, [0], **options)
    assert engine.wait_idle(5) and engine.load == (0, 0)


def test_numbers_that_are_none_end_one_request(model, engine, monkeypatch):
    bad, good = answer(model, [8], max_new_tokens=2), answer(model, [9], max_new_tokens=2)
    opened, places = engine.places.open, engine.places

    def broken(prompt):
        row, logits = opened(prompt)
        return row, logits * (np.nan if prompt[0] == 8 else 1)

    monkeypatch.setattr(places, "open", broken)
    engine.submit([bad, good])
    good.reader.wait(), bad.reader.wait()
    assert bad.reader.reason.startswith("error: logits: are not finite; must be numbers")
    assert good.reader.reason == "length" and places.free == ROWS


def test_a_step_that_fails_ends_those_in_it_and_the_next_are_computed(model, engine, monkeypatch):
    def broken(fed, greedy):
        raise RuntimeError("/secret/path")

    failed = [answer(model, [number], max_new_tokens=9) for number in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(engine.places, "step", broken)
        engine.submit(failed)
        for one in failed:
            one.reader.wait()
    assert {one.reader.reason for one in failed} == {"error: it could not be computed"}
    next_one = answer(model, [1], max_new_tokens=9, eos_token_id=[])
    engine.submit([next_one])
    assert next_one.reader.wait() == expected(model, [1], max_new_tokens=9, eos_token_id=[])
