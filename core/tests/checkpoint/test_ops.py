"""Every operation is reversed exactly, on arrays and on shapes alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.checkpoint.layout import (
    BFLOAT16,
    Concat,
    Each,
    PermuteRope,
    Reshape,
    Split,
    SplitHeads,
    Tie,
    Transpose,
)

CONFIG = SimpleNamespace(hidden=48, heads=6, groups=2, head=8, ffn=20)
QKV = Split(lambda c: [c.heads * c.head, c.groups * c.head, c.groups * c.head])

# Operation, shapes of theirs, shapes of ours.
CASES = {
    "transpose": (Transpose(), [(3, 5)], [(5, 3)]),
    "transpose of several": (Transpose(), [(3, 5), (7,)], [(5, 3), (7,)]),
    "equal parts": (Split(3), [(12, 5)], [(4, 5)] * 3),
    "equal parts of columns": (Split(3, axis=1), [(5, 12)], [(5, 4)] * 3),
    "equal parts of a bias": (Split(3), [(12,)], [(4,)] * 3),
    "grouped attention": (QKV, [(80, 48)], [(48, 48), (16, 48), (16, 48)]),
    "grouped attention's bias": (QKV, [(80,)], [(48,), (16,), (16,)]),
    "parts on the last axis": (Split([2, 5], axis=-1), [(3, 7)], [(3, 2), (3, 5)]),
    "gate and up apart": (Concat(2), [(20, 48), (20, 48)], [(40, 48)]),
    "unequal concat": (Concat([3, 4], axis=1), [(2, 3), (2, 4)], [(2, 7)]),
    "reshape": (Reshape((-1, 48), (6, 8, 48)), [(6, 8, 48)], [(48, 48)]),
    "reshape by config": (
        Reshape(lambda c: (c.heads * c.head, -1), lambda c: (c.heads, c.head, -1)),
        [(6, 8, 48)],
        [(48, 48)],
    ),
    "rope": (PermuteRope(lambda c: c.head), [(48, 48), (16, 48)], [(48, 48), (16, 48)]),
    "rope of a bias": (PermuteRope(8), [(48,)], [(48,)]),
    "rope of columns": (PermuteRope(8, axis=1), [(5, 48)], [(5, 48)]),
    "rope of half a head": (PermuteRope(8, rotary_dim=4), [(16, 3)], [(16, 3)]),
    "parts of heads": (SplitHeads(3, lambda c: c.head), [(48, 5)], [(48, 5)]),
    "parts of heads, of a bias": (SplitHeads(3, 4), [(24,)], [(24,)]),
    "no parts of heads": (SplitHeads(3, 8, lambda c: c.heads == 5), [(7, 2)], [(7, 2)]),
    "each its own": (
        Each(PermuteRope(8), Transpose(), None),
        [(16, 3), (4, 5), (7, 2)],
        [(16, 3), (5, 4), (7, 2)],
    ),
    "tie": (Tie("embedding.weight"), [(9, 4)], [(9, 4)]),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, BFLOAT16], ids=str)
def test_load_then_save_gives_the_same_bytes(case, dtype):
    op, theirs, ours = case
    generator = np.random.default_rng(3)
    size = np.dtype(dtype).itemsize
    arrays = [
        np.frombuffer(generator.bytes(int(np.prod(s)) * size), dtype).reshape(s) for s in theirs
    ]
    loaded = op.load(arrays, CONFIG)
    assert [a.shape for a in loaded] == ours
    assert all(a.dtype == dtype for a in loaded)
    back = op.save(loaded, CONFIG)
    assert [a.tobytes() for a in back] == [a.tobytes() for a in arrays]
    # And nothing is lost or doubled on the way.
    seen = np.sort(np.concatenate([a.reshape(-1).view(f"u{size}") for a in map(np.copy, loaded)]))
    all_of_it = np.sort(np.concatenate([a.reshape(-1).view(f"u{size}") for a in arrays]))
    assert np.array_equal(seen, all_of_it)


def test_save_then_load_gives_the_same_bytes(case):
    op, theirs, ours = case
    arrays = [np.arange(np.prod(s), dtype=np.float32).reshape(s) for s in ours]
    saved = op.save(arrays, CONFIG)
    assert [a.shape for a in saved] == theirs
    assert [a.tobytes() for a in op.load(saved, CONFIG)] == [a.tobytes() for a in arrays]


def test_shapes_are_found_without_memory(case):
    op, theirs, ours = case
    nothing = [np.empty(s, np.dtype([])) for s in ours]
    saved = op.save(nothing, CONFIG)
    assert [a.shape for a in saved] == theirs
    assert sum(a.nbytes for a in saved) == 0


def test_split_takes_the_parts_in_order():
    whole = np.arange(10)
    q, k, v = Split([6, 2, 2]).load([whole], CONFIG)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7], [8, 9])


def test_heads_are_taken_apart():
    """q0 q0 k0 k0 v0 v0 q1 q1 ... of two heads."""
    (ours,) = SplitHeads(3, 2).load([np.arange(12)], CONFIG)
    assert ours.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    with pytest.raises(ValueError, match=r"axis 0 of \[8\] does not hold whole heads of 3 parts"):
        SplitHeads(3, 2).load([np.arange(8)], CONFIG)


def test_rope_puts_even_rows_before_odd_ones():
    (ours,) = PermuteRope(4).load([np.arange(8)], CONFIG)
    assert ours.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    (ours,) = PermuteRope(6, rotary_dim=4).load([np.arange(6)], CONFIG)
    assert ours.tolist() == [0, 2, 1, 3, 4, 5]


def test_rope_is_the_permutation_of_the_llama_converter():
    """view(heads, d/2, 2, in).transpose(1, 2), as the published Llama weights were made."""
    weight = np.random.default_rng(0).normal(size=(24, 5))
    expected = weight.reshape(3, 4, 2, 5).swapaxes(1, 2).reshape(24, 5)
    (ours,) = PermuteRope(8).load([weight], CONFIG)
    assert np.array_equal(ours, expected)


def test_rotating_halves_of_permuted_rows_is_rotating_pairs():
    """What the permutation is for: the same rotation, scores of queries and keys unchanged."""
    generator = np.random.default_rng(1)
    q, k = generator.normal(size=(2, 8))
    angles = 0.3 ** np.arange(4)

    def pairs(x, position):
        x = x.reshape(4, 2)
        cos, sin = np.cos(position * angles), np.sin(position * angles)
        return np.stack([x[:, 0] * cos - x[:, 1] * sin, x[:, 1] * cos + x[:, 0] * sin], 1).reshape(
            -1
        )

    def halves(x, position):
        a, b = x[:4], x[4:]
        cos, sin = np.cos(position * angles), np.sin(position * angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin])

    ours_q, ours_k = PermuteRope(8).load([q, k], CONFIG)
    assert halves(ours_q, 5) @ halves(ours_k, 2) == pytest.approx(pairs(q, 5) @ pairs(k, 2))


@pytest.mark.parametrize("sizes", [[3, 3], 4, [11]])
def test_parts_that_do_not_fill_the_axis_are_refused(sizes):
    with pytest.raises(ValueError, match="do not fill axis 0"):
        Split(sizes).load([np.zeros((10, 2))], CONFIG)


def test_half_a_head_is_refused():
    with pytest.raises(ValueError, match="whole heads of 8"):
        PermuteRope(8).load([np.zeros((12, 2))], CONFIG)
