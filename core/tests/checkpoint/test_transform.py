"""Parts recut as MindSpore says, for every pair of degrees, against slices taken with NumPy."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.checkpoint.layout.tensors import BFLOAT16, Memory
from lm_core.checkpoint.transform import Transformed
from lm_core.config.parallel import ParallelConfig
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy
from lm_core.parallel.partition import Partition
from lm_core.parallel.strategy import Item, Strategy
from lm_core.testing import parts
from lm_core.testing.parity import assert_same

HEADS, KEY_HEADS, WIDTH = 8, 2, 16
CONFIG = SimpleNamespace(
    num_heads=HEADS, kv_heads=KEY_HEADS, num_layers=3, vocab_size=24, is_classifier=False,
    tie_word_embeddings=True,
)  # fmt: skip
LAYER = {
    "attention.q.weight": (WIDTH, WIDTH),
    "attention.q.bias": (WIDTH,),
    "attention.k.weight": (WIDTH, 2 * KEY_HEADS),
    "attention.k.bias": (2 * KEY_HEADS,),
    "attention.v.weight": (WIDTH, 2 * KEY_HEADS),
    "attention.v.lora_a": (WIDTH, 3),
    "attention.v.lora_b": (3, 2 * KEY_HEADS),
    "attention.out.weight": (WIDTH, WIDTH),
    "mlp.gate.weight": (WIDTH, 48),
    "mlp.up.weight": (WIDTH, 48),
    "mlp.down.weight": (48, WIDTH),
    "mlp.down.lora_a": (48, 3),
}
SHAPES = {
    "embedding.weight": (24, WIDTH),
    **{f"layers.{n}.{name}": shape for n in range(3) for name, shape in LAYER.items()},
    "norm.weight": (WIDTH,),
}


def partition(dp, tp, pp, shard):
    degrees = parts.degrees(dp, tp, pp, optimizer_shard=shard, vocab_emb_dp=False)
    return Partition(CONFIG, degrees, SHAPES)


def everything():
    arrays = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in SHAPES.items()}
    arrays = {name: (array + 1000).astype("<f4") for name, array in arrays.items()}
    return Memory({f"{start}{name}": a for start in ("", "adam.m.") for name, a in arrays.items()})


# A round over all of them; each pair of neighbours is one test.
DEGREES = [(1, 1, 1), (2, 2, 2), (1, 8, 1), (4, 1, 3), (1, 4, 2), (2, 1, 1)]


@pytest.mark.parametrize(
    ("source", "target"), list(zip(DEGREES, DEGREES[1:] + DEGREES[:1], strict=True)), ids=str
)
def test_any_degrees_become_any_others(tmp_path, monkeypatch, source, target):
    """Keys and values that several ranks share, tied tables at both ends, optimizer state."""
    shards = (sum(source) % 2 == 0, sum(target) % 2 == 1)
    own, wanted = partition(*source, shards[0]), partition(*target, shards[1])
    whole = everything()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def open_part(rank):
        return parts.cut(whole, own, rank)

    ranks = wanted.degrees.world_size
    for rank in {0, ranks // 2, ranks - 1}:
        made = Transformed(open_part, strategy.of(own), strategy.of(wanted), rank)
        assert_same(made, parts.cut(whole, wanted, rank))
    assert not list(tmp_path.iterdir())


def test_only_the_parts_that_are_needed_are_opened():
    own, wanted = partition(2, 4, 1, False), partition(1, 2, 1, False)
    opened = set()

    def open_part(rank):
        opened.add(rank)
        return parts.cut(everything(), own, rank)

    made = Transformed(open_part, strategy.of(own), strategy.of(wanted), 1)
    needed = made.needed()
    for name in made.specs:
        made.read(name)
    assert opened <= needed | {0}
    assert needed == {0, 2, 3}  # Of the first everything that nobody cuts.


def test_mindspore_is_asked_once_for_each_kind_of_cut(monkeypatch):
    """And never sees a weight: what it is handed has a number for each piece."""
    import mindspore

    own, asked, given = partition(1, 2, 1, False), [], []
    recut = mindspore.transform_checkpoint_by_rank

    def counting(rank, files, *rest):
        given.extend(Path(file).stat().st_size for file in files.values())
        asked.append(rest[1:])
        return recut(rank, files, *rest)

    monkeypatch.setattr(mindspore, "transform_checkpoint_by_rank", counting)
    whole = everything()
    made = Transformed(
        lambda rank: parts.cut(whole, own, rank), strategy.of(own), strategy.WHOLE, 0
    )
    assert_same(made, whole)
    kinds = {item for item in strategy.of(own).stages[0].values() if item.is_cut}
    assert len(asked) == len(kinds) and 2 <= len(kinds) <= 4
    assert max(given) < 100


@pytest.mark.parametrize("dtype", ["<f8", "<f2", "<i8", "<i4", "u1", "?", BFLOAT16])
def test_bits_of_every_type_survive(dtype):
    dtype = np.dtype(dtype)
    values = 2 if dtype.kind == "b" else 256
    bits = np.random.default_rng(0).integers(0, values, 8 * 4 * dtype.itemsize)
    whole = bits.astype("u1").view(dtype).reshape(8, 4)
    cut = Strategy(({"a": Item((2, 4), (0, -1)), "b": Item((2, 4), (-1, 0))},))
    halves = {"a": np.split(whole, 4, 0), "b": np.split(whole, 4, 1)}

    def open_part(rank):
        return Memory({n: np.ascontiguousarray(split[rank % 4]) for n, split in halves.items()})

    made = Transformed(open_part, cut, strategy.WHOLE, 0)
    assert_same(made, Memory({"a": whole, "b": whole}))


def test_optimizer_parallel_of_mindspore():
    """Its own way to cut the first dimension further over the ranks that share a part."""
    whole = np.arange(64, dtype="<f4").reshape(16, 4)
    cut = Strategy(({"a": Item((4, 2), (-1, 0), 4, 2), "b": Item((4, 2), (-1, -1))},))

    def open_part(rank):
        half = np.split(whole, 2, 1)[rank % 2]
        return Memory({"a": np.split(half, 4, 0)[rank // 2].copy(), "b": whole})

    made = Transformed(open_part, cut, strategy.WHOLE, 0)
    np.testing.assert_array_equal(made.read("a"), whole)


def test_strategies_that_do_not_fit():
    own = partition(1, 2, 1, False)
    whole = everything()

    def refused(source, target, rank=0):
        with pytest.raises(CheckpointError, match="do not fit") as error:
            Transformed(lambda rank: parts.cut(whole, own, rank), source, target, rank)
        return str(error.value)

    cut = strategy.of(own)
    uneven = {name: Item((1, 3), (-1,) * len(item.axes)) for name, item in cut.stages[0].items()}
    uneven["norm.weight"] = Item((1, 3), (0,))
    assert "norm.weight; both" in refused(cut, Strategy((uneven,)))
    flat = {**cut.stages[0], "norm.weight": Item((1, 2), (0, -1))}
    assert "norm.weight; both" in refused(Strategy((flat,)), strategy.WHOLE)
    fewer = {n: item for n, item in cut.stages[0].items() if "layers.2" not in n}
    assert "layers.2.attention.q.weight" in refused(Strategy((fewer,)), strategy.WHOLE)
    assert " more; both" in refused(cut, Strategy(({"other": Item((2,), (0,))},)))


def test_a_part_of_another_checkpoint():
    own = partition(1, 2, 1, False)
    whole = everything()
    less = Memory({name: whole.read(name) for name in list(whole.specs)[:5]})
    made = Transformed(
        lambda rank: parts.cut(less if rank else whole, own, rank),
        strategy.of(own), strategy.WHOLE, 0,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="missing or of another shape"):
        for name in made.specs:
            made.read(name)


def test_degrees_are_found_again():
    for degrees in DEGREES:
        for shard in (False, True):
            found = strategy.degrees(strategy.of(partition(*degrees, shard)))
            assert isinstance(found, ParallelConfig)
            assert (found.data_parallel, found.model_parallel, found.pipeline_stage) == degrees
            assert bool(found.optimizer_shard) == (shard and degrees[0] > 1)
