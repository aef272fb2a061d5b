"""Which part of each parameter a rank holds: nothing twice, nothing left out, and why not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lm_core.config.model import ModelConfig
from lm_core.config.parallel import ParallelConfig
from lm_core.errors import ConfigError
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import (
    WHOLE,
    Cut,
    Partition,
    layers_of,
    problems,
    stage_of,
)

HIDDEN, INNER, WORDS, LAYERS, RANK = 24, 48, 96, 5, 3


class Config(ModelConfig):
    vocab_size: int = WORDS
    hidden_size: int = HIDDEN
    num_layers: int = LAYERS
    num_heads: int = 12
    seq_length: int = 8
    tie_word_embeddings: bool = True
    groups: int = 12

    @property
    def kv_heads(self) -> int:
        return self.groups

    architectures = {"Classifier": "text_classification"}


def shapes(config: Config, *, adapters: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """All parameters of a network with biases, gates and adapters on some layers."""
    keys = config.groups * HIDDEN // config.num_heads
    tied = config.tie_word_embeddings
    found = {
        "embedding.weight": (HIDDEN, WORDS) if tied else (WORDS, HIDDEN),
        "position_embedding.weight": (8, HIDDEN),
    }
    widths = {
        "attention.q": (HIDDEN, HIDDEN), "attention.k": (HIDDEN, keys),
        "attention.v": (HIDDEN, keys), "attention.out": (HIDDEN, HIDDEN),
        "mlp.gate": (HIDDEN, INNER), "mlp.up": (HIDDEN, INNER), "mlp.down": (INNER, HIDDEN),
    }  # fmt: skip
    for layer in range(config.num_layers):
        block = f"layers.{layer}."
        found[f"{block}attention_norm.weight"] = (HIDDEN,)
        for name, (inputs, outputs) in widths.items():
            found[f"{block}{name}.weight"] = (inputs, outputs)
            found[f"{block}{name}.bias"] = (outputs,)
            if name in adapters:
                found[f"{block}{name}.lora_a"] = (inputs, RANK)
                found[f"{block}{name}.lora_b"] = (RANK, outputs)
    found["norm.weight"] = (HIDDEN,)
    if config.is_classifier:
        found["score.weight"] = (HIDDEN, config.num_labels)
    elif not tied:
        found["head.weight"] = (HIDDEN, WORDS)
    return found


def partition(config: Config | None = None, adapters: tuple[str, ...] = (), **degrees) -> Partition:
    config = config or Config()
    return Partition(config, ParallelConfig(**degrees), shapes(config, adapters=adapters))


CONFIGS = {
    "tied": Config(),
    "own head": Config(tie_word_embeddings=False),
    "shared keys": Config(groups=2),
    "classifier": Config(task="text_classification", num_labels=3),
}
ALL = ("attention.q", "attention.k", "attention.out", "mlp.up", "mlp.down")


@pytest.mark.parametrize("vocab_emb_dp", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4, 12])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_ranks_together_hold_everything(config, ranks, stages, vocab_emb_dp):
    """The parts of all ranks, laid where `slices` says, are the whole, each place held as often."""
    part = partition(
        config, ALL, model_parallel=ranks, pipeline_stage=stages, micro_batch_num=stages,
        vocab_emb_dp=vocab_emb_dp,
    )  # fmt: skip
    held = {name for stage in range(stages) for name in part.names(stage)}
    assert held == set(part.shapes)
    for name, shape in part.shapes.items():
        found = np.zeros(shape, int)
        for rank in range(ranks):
            where = part.slices(name, rank)
            assert found[where].shape == part.local_shape(name)
            found[where] += 1
        # A tensor that is cut into fewer parts than ranks is held by several each.
        assert (found == ranks // part.cut(name).parts).all(), name


def test_which_side_is_cut():
    """Columns of what widens a token, rows of what narrows it (Megatron-LM, section 3)."""
    part = partition(adapters=ALL, model_parallel=4)
    cuts = {name.removeprefix("layers.1."): part.cut(name) for name in part.shapes}
    for layer in ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up"):
        assert cuts[f"{layer}.weight"] == Cut(1, 4) and cuts[f"{layer}.bias"] == Cut(0, 4)
    for layer in ("attention.out", "mlp.down"):
        assert cuts[f"{layer}.weight"] == Cut(0, 4) and cuts[f"{layer}.bias"] == WHOLE
    assert cuts["attention.q.lora_a"] == WHOLE and cuts["attention.q.lora_b"] == Cut(1, 4)
    assert cuts["mlp.down.lora_a"] == Cut(0, 4) and cuts["mlp.down.lora_b"] == WHOLE
    for name in ("embedding.weight", "position_embedding.weight", "norm.weight"):
        assert cuts[name] == WHOLE
    assert cuts["attention_norm.weight"] == WHOLE


def test_the_table_and_the_head():
    for tied, dim in ((True, 1), (False, 0)):
        config = Config(tie_word_embeddings=tied)
        part = partition(config, model_parallel=4, vocab_emb_dp=False)
        assert part.cut("embedding.weight") == Cut(dim, 4)
        assert part.is_tied == tied
    # A head of its own is cut wherever that is possible.
    assert partition(config, model_parallel=4).cut("head.weight") == Cut(1, 4)
    odd = {**shapes(config), "head.weight": (HIDDEN, 97)}
    whole = Partition(config, ParallelConfig(model_parallel=4), odd)
    assert whole.cut("head.weight") == WHOLE
    classes = partition(CONFIGS["classifier"], model_parallel=4)
    assert classes.cut("score.weight") == WHOLE and not classes.is_tied


def test_neighbours_share_keys_and_values():
    part = partition(Config(groups=2), model_parallel=4)
    name = "layers.0.attention.k.weight"
    assert part.cut(name) == Cut(1, 2) and part.local_shape(name) == (HIDDEN, 2)
    columns = [part.slices(name, rank)[1] for rank in range(4)]
    assert columns == [slice(0, 2), slice(0, 2), slice(2, 4), slice(2, 4)]
    assert part.cut("layers.0.attention.q.weight") == Cut(1, 4)


@pytest.mark.parametrize("layers", range(1, 20))
def test_stages_are_as_even_as_can_be(layers):
    for stages in range(1, layers + 1):
        found = [layers_of(stage, layers, stages) for stage in range(stages)]
        assert [layer for run in found for layer in run] == list(range(layers))
        sizes = [len(run) for run in found]
        assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
        for stage, run in enumerate(found):
            assert {stage_of(layer, layers, stages) for layer in run} == {stage}


def test_what_the_ends_hold():
    part = partition(adapters=("attention.q",), pipeline_stage=2, micro_batch_num=2)
    assert part.stages("embedding.weight") == (0, 1) and part.stages("norm.weight") == (1,)
    assert part.stages("position_embedding.weight") == (0,)
    assert part.stages("layers.2.attention.q.lora_b") == (0,)
    assert part.stages("layers.3.attention.q.bias") == (1,)
    assert [part.has_head(stage) for stage in (0, 1)] == [False, True]
    assert list(part.layers(1)) == [3, 4]
    # As in the model, for those that read it one after the other.
    order = list(part.shapes)
    for stage in (0, 1):
        places = [order.index(name) for name in part.names(stage)]
        assert all(a < b for a, b in pairwise(places))
    assert partition().stages("embedding.weight") == (0,)
    for config in (CONFIGS["own head"], CONFIGS["classifier"]):
        apart = partition(config, pipeline_stage=2, micro_batch_num=2)
        assert apart.stages("embedding.weight") == (0,)
        assert apart.stages(list(apart.shapes)[-1]) == (1,)


def test_numbers_of_a_rank():
    part = partition(model_parallel=4, pipeline_stage=5, micro_batch_num=5)
    block = (4 * HIDDEN**2 + 3 * HIDDEN * INNER + 3 * HIDDEN + 2 * INNER) // 4 + 3 * HIDDEN
    table = WORDS * HIDDEN
    assert part.numbers(1) == block
    assert part.numbers(0) == block + table + 8 * HIDDEN
    assert part.numbers(4) == block + table + HIDDEN
    assert part.numbers(4, {"norm.weight", "position_embedding.weight"}) == HIDDEN


def test_optimizer_state_is_shared_along_a_free_dimension():
    part = partition(model_parallel=4, data_parallel=8, optimizer_shard=True, vocab_emb_dp=False)
    # [24, 96] cut by columns, [24, 24] by rows, [24, 48] by columns, [12, 24].
    assert part.state_dim("embedding.weight") == 0
    assert part.state_dim("layers.0.attention.out.weight") == 1
    assert part.state_dim("layers.0.mlp.up.weight") == 0
    assert part.state_dim("layers.0.mlp.down.weight") == 1
    assert part.state_dim("norm.weight") is None
    assert part.state_dim("layers.0.mlp.up.bias") is None
    # 24 is no multiple of 16, and the other dimension is that of the tensor-parallel ranks.
    for name in ("layers.0.attention.out.weight", "layers.0.mlp.up.weight"):
        wide = partition(model_parallel=2, data_parallel=16, optimizer_shard=True)
        assert wide.state_dim(name) is None
    assert wide.state_dim("embedding.weight") == 1  # whole: 96 columns
    for degrees in ({"data_parallel": 8}, {"optimizer_shard": True}):
        assert partition(**degrees).state_dim("embedding.weight") is None


def test_parts_belong_to_the_rank_of_the_context():
    """The same order of ranks as everywhere: tp is the innermost."""
    degrees = ParallelConfig(data_parallel=2, model_parallel=3, pipeline_stage=2)
    contexts = [ParallelContext.from_config(degrees, 12, rank) for rank in range(12)]
    places = [(one.stage, one.dp_rank, one.tp_rank) for one in contexts]
    assert places == [(s, d, t) for s in range(2) for d in range(2) for t in range(3)]


@pytest.mark.parametrize(
    ("config", "degrees", "found"),
    [
        (
            {},
            {"model_parallel": 5},
            ["model_parallel: 5 does not divide 12 heads; use 1, 2, 3, 4, 6 or 12",
             "model_parallel: 5 does not divide 48 feed-forward columns; "
             "use 1, 2, 3, 4, 6 or 12"],
        ),
        (
            {},
            {"model_parallel": 24},
            ["model_parallel: 24 does not divide 12 heads; use 1, 2, 3, 4, 6 or 12"],
        ),
        (
            {"vocab_size": 95},
            {"model_parallel": 2, "vocab_emb_dp": False},
            ["model_parallel: 2 does not divide 95 rows of the vocabulary (or set vocab_emb_dp: "
             "True); use 1"],
        ),
        ({"vocab_size": 95}, {"model_parallel": 2}, []),
        (
            {"groups": 4},
            {"model_parallel": 6},
            ["model_parallel: 6 neither divides the 4 heads of keys and values nor is a multiple "
             "of them; use 1, 2, 4 or 12"],
        ),
        (
            {},
            {"pipeline_stage": 6, "micro_batch_num": 4},
            ["pipeline_stage: 6 is more than the 5 layers of the model; use 1 to 5",
             "micro_batch_num: 4 is less than pipeline_stage 6, so stages would idle all the "
             "time; use 6 or more (4 x 6 is good)"],
        ),
        ({}, {"pipeline_stage": 5, "micro_batch_num": 5, "model_parallel": 12}, []),
    ],
)  # fmt: skip
def test_what_does_not_fit(config, degrees, found):
    config, degrees = Config(**config), ParallelConfig(**degrees)
    lines = problems(config, degrees, shapes(config))
    assert lines == [f"parallel_config.{line}" for line in found]
    if found:
        with pytest.raises(ConfigError) as caught:
            Partition(config, degrees, shapes(config))
        assert list(caught.value.problems) == lines


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_numbers_that_are_advised_do_fit(config):
    for ranks in range(1, 30):
        lines = problems(config, ParallelConfig(model_parallel=ranks), shapes(config))
        for line in lines:
            advised = line.partition("; use ")[2].replace(" or ", ", ").split(", ")
            assert str(ranks) not in advised
            for number in map(int, advised):
                Partition(config, ParallelConfig(model_parallel=number), shapes(config))
