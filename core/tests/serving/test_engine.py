"""The engine's queue, and how it ends, on a machine that begins when it is told to."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from kept import Kept

from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig
from lm_core.serving.engine import Answer, Busy, Closing, Engine


class Held:
    """Places of a machine that does not begin before it is told to."""

    def __init__(self, rows=1):
        self.free, self.go = rows, threading.Event()

    def compile(self):
        return ()

    def open(self, prompt):
        assert self.go.wait(30)
        self.free -= 1
        return 0, np.eye(8, dtype=np.float32)[1]

    def step(self, fed, greedy):
        return {row: np.int32(1) for row in fed}

    def close(self, row):
        self.free += 1


def held_answer(limit=3) -> Answer:
    return Answer(np.array([1], np.int32), limit, GenerationConfig(eos_token_id=[]), Kept())


def test_a_full_queue_takes_all_of_a_call_or_nothing():
    places = Held()
    engine = Engine(places, max_queue=3)
    engine.start()
    first = [held_answer() for _ in range(2)]
    engine.submit(first)
    with pytest.raises(Busy):
        engine.submit([held_answer(), held_answer()])
    engine.submit([held_answer()])
    with pytest.raises(Busy):
        engine.submit([held_answer()])
    places.go.set()
    assert [one.reader.wait() for one in first] == [[1, 1], [1, 1]]
    assert engine.wait_idle(5)
    engine.close()


@pytest.mark.parametrize("limit", [2, 3])
def test_who_has_its_answer_is_not_counted_any_more(limit):
    places, loads = Held(), []
    engine = Engine(places, max_queue=8)
    engine.start()
    answer = held_answer(limit)  # with 2, the prompt's own token is the answer
    token, end = answer.reader.token, answer.reader.end
    answer.reader.token = lambda *given: loads.append(engine.load) or token(*given)
    answer.reader.end = lambda reason: loads.append(engine.load) or end(reason)
    engine.submit([answer])
    assert engine.load == (0, 1)
    places.go.set()
    answer.reader.wait()
    engine.close()
    assert loads == [(1, 0)] * (limit - 1) + [(0, 0)]


def test_a_drained_engine_ends_what_it_has():
    places = Held()
    engine = Engine(places, max_queue=8)
    engine.start()
    here = [held_answer(), held_answer()]
    engine.submit(here)
    engine.drain()
    with pytest.raises(Closing):
        engine.submit([held_answer()])
    assert not engine.wait_idle(0.05)
    places.go.set()
    assert engine.wait_idle(5)
    assert [one.reader.reason for one in here] == ["length", "length"]
    engine.close()


def test_a_closed_engine_tells_everybody():
    places = Held()
    engine = Engine(places, max_queue=8)
    engine.start()
    here = [held_answer(10**6), held_answer()]
    engine.submit(here)
    places.go.set()
    engine.close()
    assert {one.reader.reason for one in here} == {"closed"}


def test_what_compiling_raises_is_raised_where_the_engine_starts():
    places = Held()
    places.compile = lambda: (_ for _ in ()).throw(GenerationError("model: is odd; must not be"))
    with pytest.raises(GenerationError, match="is odd"):
        Engine(places, max_queue=1).start()


def test_an_engine_that_is_stopped_while_it_compiles_does_not_go_on(monkeypatch):
    """As a signal does it: the thread that waits for the engine gets an exception."""
    places, compiled = Held(), []

    def compile_slowly():
        for number in range(1000):
            compiled.append(number)
            threading.Event().wait(0.01)
            yield

    places.compile = compile_slowly
    engine = Engine(places, max_queue=1)

    def interrupted(condition):
        while not compiled:
            threading.Event().wait(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._changed, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.start()
    assert 0 < len(compiled) < 500 and not engine._thread.is_alive()


def test_a_reader_that_fails_is_told_so_and_does_not_stop_the_others():
    places = Held()
    places.go.set()
    engine = Engine(places, max_queue=8)
    engine.start()
    broken, good = held_answer(), held_answer()

    def fails(*_):
        raise RuntimeError("cannot read this")

    broken.reader.token = fails
    worse = held_answer()
    ends = iter([fails])
    kept = worse.reader.end
    worse.reader.end = lambda reason: next(ends, kept)(reason)
    engine.submit([broken, worse, good])
    assert good.reader.wait() == [1, 1]
    broken.reader.wait(), worse.reader.wait()
    assert broken.reader.reason == "error: it could not be computed"
    assert worse.reader.reason == "error: it could not be told"
    engine.close()


def test_an_engine_that_fails_ends_all_answers_and_is_not_open():
    places = Held()
    engine = Engine(places, max_queue=8)
    engine.start()
    here = [held_answer(10**6), held_answer()]
    engine.submit(here)

    def broken():
        raise RuntimeError("this machine is broken")

    engine._step = broken
    places.go.set()
    for one in here:
        one.reader.wait()
    assert {one.reader.reason for one in here} == {"closed"}
    engine._thread.join(10)
    assert not engine.open and engine.load == (0, 0)
    with pytest.raises(Closing):
        engine.submit([held_answer()])
