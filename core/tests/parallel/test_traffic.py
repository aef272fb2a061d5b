"""What a rank exchanges in a step: counted by hand for small models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lm_core.config.model import LoraConfig, ModelConfig
from lm_core.config.parallel import ParallelConfig, RecomputeConfig
from lm_core.parallel import machine, traffic
from lm_core.parallel.partition import Partition
from lm_core.peft import targets

H, F, V, S, BATCH = 8, 32, 40, 6, 3
T = BATCH * S
WIDE = 4 * T * H
"""Bytes of activations [T, H]."""


class Config(ModelConfig):
    vocab_size: int = V
    hidden_size: int = H
    num_layers: int = 4
    num_heads: int = 4
    seq_length: int = S
    tie_word_embeddings: bool = True

    architectures = {"Classifier": "text_classification"}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    tied = config.tie_word_embeddings
    found = {"embedding.weight": (H, V) if tied else (V, H)}
    for layer in range(config.num_layers):
        block = f"layers.{layer}."
        found[f"{block}attention_norm.weight"] = (H,)
        for name in "qkv":
            found[f"{block}attention.{name}.weight"] = (H, H)
        found[f"{block}attention.out.weight"] = (H, H)
        found[f"{block}mlp.up.weight"] = (H, F)
        found[f"{block}mlp.down.weight"] = (F, H)
    found["norm.weight"] = (H,)
    if not tied:
        found["head.weight"] = (H, V)
    return found


BLOCK = 4 * H * H + 2 * H * F
"""Matrices of a block."""


def exchanges(
    stage: int = 0, accumulation: int = 1, recompute: bool = False, adapter: str = "",
    config: Config | None = None, device: str = "CPU", **degrees,
) -> dict[tuple[str, str], tuple[int, int]]:  # fmt: skip
    """(group, what) -> calls and bytes."""
    config = config or Config()
    if adapter:
        config = config.copy(pet_config=LoraConfig(lora_rank=2, target_modules=adapter))
    run = SimpleNamespace(
        runner_config=SimpleNamespace(batch_size=BATCH, gradient_accumulation_steps=accumulation),
        recompute_config=RecomputeConfig(recompute=recompute),
        context=SimpleNamespace(device_target=device),
    )
    spec = SimpleNamespace(name="toy", tables={"hf": Table()})
    all_shapes = targets.shapes(spec, config)
    part = Partition(config, ParallelConfig(**degrees), all_shapes)
    trained = targets.trained(all_shapes, config.pet_config)
    found = traffic.step(run, part, stage, trained)
    return {(one.group, one.what): (one.calls, one.size) for one in found}


class Table:
    """What a layout of weights knows."""

    def shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        return shapes(config)

    def expand(self, config: Config) -> list:
        return []


def test_one_process_sends_nothing():
    assert exchanges() == {}


def test_tensor_parallel_sums():
    # Two sums of [T, H] forward and two backward in each of 4 blocks.
    assert exchanges(model_parallel=2)["tp", "activations"] == (16, 16 * WIDE)
    assert exchanges(model_parallel=2, accumulation=3)["tp", "activations"] == (48, 48 * WIDE)
    # Recomputed blocks have those of the forward pass twice.
    assert exchanges(model_parallel=4, recompute=True)["tp", "activations"] == (24, 24 * WIDE)
    assert exchanges(data_parallel=2).keys() == {("dp", "gradients"), ("dp", "scalars")}


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_is_split(tied):
    config = Config(tie_word_embeddings=tied)
    calls, size = exchanges(config=config, model_parallel=2, vocab_emb_dp=False)[
        "tp", "activations"
    ]
    # The look-up, the gradient of the head's input, and [T], [T, 1] and [T, 2] of the loss.
    assert calls == 16 + 1 + 1 + 3
    assert size == 18 * WIDE + 4 * T * (1 + 1 + 2)
    # A head of its own is split where the table is not.
    calls, size = exchanges(config=config, model_parallel=2)["tp", "activations"]
    assert calls == (16 if tied else 16 + 1 + 3)


def test_a_classifier_has_whole_logits():
    config = Config(task="text_classification", num_labels=2)
    calls, size = exchanges(config=config, model_parallel=2, vocab_emb_dp=False)[
        "tp", "activations"
    ]
    assert (calls, size) == (17, 17 * WIDE)


def test_gradients_are_exchanged_once_in_a_step():
    total = V * H + 4 * (BLOCK + H) + H
    for accumulation in (1, 5):
        found = exchanges(accumulation=accumulation, data_parallel=3)
        assert found["dp", "gradients"] == (4, 4 * total)
    found = exchanges(data_parallel=3, gradient_aggregation_group=100)
    assert found["dp", "gradients"] == (2 + 7 * 4, 4 * total)
    found = exchanges(data_parallel=3, model_parallel=2)
    assert found["dp", "gradients"][1] == 4 * (V * H + 4 * (BLOCK // 2 + H) + H)


def test_a_shared_optimizer_gathers_what_it_shares():
    found = exchanges(data_parallel=4, optimizer_shard=True)
    assert found["dp", "weights"] == (4, 4 * (V * H + 4 * BLOCK))  # no norms
    assert found["dp", "gradients"] == exchanges(data_parallel=4)["dp", "gradients"]
    half = exchanges(
        data_parallel=4, optimizer_shard=True, device="Ascend",
        config=Config(param_init_type="float16"),
    )  # fmt: skip
    assert half["dp", "weights"] == found["dp", "weights"]  # both are summed in float32
    assert half["dp", "gradients"] == found["dp", "gradients"]


def test_a_pipeline():
    pipeline = {"pipeline_stage": 4, "micro_batch_num": 6}
    for stage, neighbours in enumerate((1, 2, 2, 1)):
        found = exchanges(stage, **pipeline)
        assert found["pp", "activations"] == (6 * neighbours, 6 * neighbours * WIDE)
        at_an_end = neighbours == 1
        assert (("ends", "gradients") in found) == at_an_end
        if at_an_end:
            assert found["ends", "gradients"] == (1, 4 * V * H)
        assert ("tp", "activations") not in found
    found = exchanges(1, accumulation=2, **pipeline)
    assert found["pp", "activations"] == (24, 24 * WIDE)
    untied = exchanges(0, config=Config(tie_word_embeddings=False), **pipeline)
    assert ("ends", "gradients") not in untied
    frozen = exchanges(0, adapter=r".*attention\.q", **pipeline)
    assert ("ends", "gradients") not in frozen


def test_all_three_at_once():
    degrees = {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 3}
    first = exchanges(0, vocab_emb_dp=False, **degrees)
    # Two blocks; all but the last stage compute their forward pass twice, look-up included.
    assert first["tp", "activations"] == (3 * (12 + 2), 3 * 14 * WIDE)
    last = exchanges(1, vocab_emb_dp=False, **degrees)
    assert last["tp", "activations"] == (3 * (8 + 4), 3 * (9 * WIDE + 16 * T))
    assert first["ends", "gradients"] == last["ends", "gradients"] == (1, 4 * V * H // 2)
    assert first["dp", "gradients"] == (4, 4 * (V * H // 2 + 2 * (BLOCK // 2 + H)))
    for found in (first, last):
        assert found["world", "scalars"] == (1, 8) and found["model", "scalars"] == (1, 4)


def test_whole_factors_of_adapters_are_summed():
    rank = 2
    # q is cut by columns: every rank has all of lora_a [H, r] and finds a part of its gradient.
    found = exchanges(adapter=r".*attention\.q", model_parallel=2)
    assert found["tp", "activations"] == (16 + 4, 16 * WIDE + 4 * 4 * H * rank)
    # down is cut by rows: lora_b [r, H] is whole.
    found = exchanges(adapter=r".*mlp\.down", model_parallel=2, accumulation=2)
    assert found["tp", "activations"] == (2 * 20, 2 * (16 * WIDE + 4 * 4 * rank * H))
    # Nothing else is trained.
    found = exchanges(adapter=r".*mlp\.up", data_parallel=2)
    assert found["dp", "gradients"] == (4, 4 * 4 * rank * (H + F))


def test_bytes_on_the_wire():
    """A ring gives (n - 1) / n of a tensor to the neighbour, twice for a sum."""
    for ranks in (2, 4, 8):
        reduce = traffic.Exchange("dp", "all_reduce", "gradients", ranks, 1, 800)
        assert reduce.sent == pytest.approx(2 * 800 * (ranks - 1) / ranks)
    assert traffic.Exchange("pp", "send", "activations", 4, 3, 800).sent == 800


def test_activations_have_the_type_of_weights_on_ascend():
    half = Config(param_init_type="float16")
    for device, bytes_each in (("CPU", 4), ("Ascend", 2)):
        found = exchanges(config=half, device=device, model_parallel=2)["tp", "activations"]
        assert found[1] == 16 * bytes_each * T * H
        assert machine.width(device, "float16") == bytes_each
