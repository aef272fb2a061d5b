"""Work spread over processes: the same results, in order, and no process left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest

from lm_core.data.preprocess import Item, Preprocessor, cut, encode_all, find_inputs
from lm_core.errors import DataError

# The functions that workers run live in a module that they can import by name.
HELPERS = """
import os, signal, time

def square(tokenizer, options, work):
    time.sleep(0.002 * (work % 3))
    return work * work + options.add

def fail_at_five(tokenizer, options, work):
    if work == 5:
        raise ValueError("five")
    return work

def die_at_five(tokenizer, options, work):
    if work == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return work

def sleep(tokenizer, options, work):
    open(f"{options.folder}/{os.getpid()}", "w").close()
    time.sleep(30)
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    name = f"helpers_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return __import__(name)


def preprocessor(encode):
    nothing = dict.fromkeys(("add_arguments", "columns", "read", "records"), None)
    return Preprocessor(help="", suffixes=(), encode=encode, **nothing)


def items(count):
    return (Item(k, 10 * k) for k in range(count))


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(helpers, processes):
    sizes = []
    results = encode_all(
        preprocessor(helpers.square), items(50), None, Namespace(add=1), processes, sizes.append
    )
    assert list(results) == [k * k + 1 for k in range(50)]
    assert sizes == [10 * k for k in range(50)]


def test_items_are_not_read_far_ahead(helpers):
    read = []

    def reading():
        for item in items(1000):
            read.append(item)
            yield item

    results = encode_all(preprocessor(helpers.square), reading(), None, Namespace(add=0), 2, max_of)
    assert next(results) == 0
    assert len(read) <= 8
    results.close()


def max_of(size):
    assert size >= 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_worker_is_raised_here(helpers, processes):
    got = []
    with pytest.raises(ValueError, match="five"):
        for result in encode_all(
            preprocessor(helpers.fail_at_five), items(50), None, Namespace(), processes, max_of
        ):
            got.append(result)
    assert got == [0, 1, 2, 3, 4]


def test_a_killed_worker_is_reported(helpers):
    with pytest.raises(DataError, match="num_process: a worker process was killed"):
        list(encode_all(preprocessor(helpers.die_at_five), items(50), None, Namespace(), 2, max_of))


ORPHANS = """
import sys
from argparse import Namespace
from lm_core.data.preprocess import Item, Preprocessor, encode_all
import {module} as helpers
if __name__ == "__main__":
    nothing = dict.fromkeys(("add_arguments", "columns", "read", "records"), None)
    made = Preprocessor(help="", suffixes=(), encode=helpers.sleep, **nothing)
    items = (Item(k, 1) for k in range(9))
    list(encode_all(made, items, None, Namespace(folder=sys.argv[1]), 2, print))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(helpers, tmp_path, number):
    script = tmp_path / "main.py"
    script.write_text(ORPHANS.format(module=helpers.__name__))
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "pids")])
    deadline = time.time() + 60
    while len(pids := os.listdir(tmp_path / "pids")) < 2:
        assert time.time() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait()
    deadline = time.time() + 15
    while any(running(int(pid)) for pid in pids):
        assert time.time() < deadline
        time.sleep(0.05)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_inputs(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.md", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_inputs([tmp_path, tmp_path / "e.png"], (".txt", ".md"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a.txt",
        "b.txt",
        "d.md",
        "sub/c.txt",
        "e.png",
    ]
    assert find_inputs([tmp_path / "*.txt"], ()) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert len(find_inputs([tmp_path / "**" / "*.txt", tmp_path / "[de].*"], ())) == 5
    (tmp_path / "f[1].txt").write_text("a name that looks like a pattern")
    assert find_inputs([tmp_path / "f[1].txt"], ()) == [tmp_path / "f[1].txt"]
    with pytest.raises(DataError, match=r"\*.csv matches no file"):
        find_inputs([tmp_path / "*.csv"], ())
    with pytest.raises(DataError, match="holds no file ending in .tokens, .raw"):
        find_inputs([tmp_path], (".tokens", ".raw"))
    with pytest.raises(DataError, match="nothing.txt does not exist"):
        find_inputs([tmp_path / "nothing.txt"], (".txt",))


@pytest.mark.parametrize("size", [1, 3, 17, 100, 10**6])
def test_cut_pieces_join_to_the_text_and_their_ids_to_its_ids(tokenizer, size):
    rng = random.Random(size)
    for _ in range(100):
        text = "".join(rng.choices("water lob'ste \n\n\t<|endoftext|>\u4f60", k=rng.randrange(200)))
        ends = sorted(rng.randrange(len(text) + 1) for _ in range(5))
        parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        pieces = list(cut(parts, tokenizer, size))
        assert "".join(pieces) == text
        assert all(pieces)
        ids = sum((tokenizer.encode_piece(piece).tolist() for piece in pieces), [])
        assert ids == tokenizer.encode(text)


def test_pieces_have_about_the_size(tokenizer):
    pieces = list(cut(["some words \n"] * 10_000, tokenizer, 1000))
    assert max(map(len, pieces)) < 1100
    assert min(map(len, pieces[:-1])) > 900


def test_text_that_cannot_be_cut_stays_whole_in_linear_time(tokenizer):
    start = time.perf_counter()
    pieces = list(cut(["a" * 1000] * 3000, tokenizer, 1000))
    assert [len(piece) for piece in pieces] == [3_000_000]
    assert time.perf_counter() - start < 30
