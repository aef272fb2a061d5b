"""The memory model against peaks of real processes, recorded on two cores of an x86-64 CPU.

Each record is the greatest resident size, in MB, of two updates by `Trainer.train()`, or of a
generation, of a Llama of these sizes. What is foretold must be within a fifth of it.
"""

from __future__ import annotations

import pytest

from lm_core.config.parallel import ParallelConfig
from lm_core.nn import memory
from lm_core.parallel import traffic
from lm_core.parallel.partition import Partition
from lm_core.peft import targets
from lm_core.spec import read_run
from lm_llama import SPEC

RECOMPUTED = {"recompute_config": {"recompute": True}}
ACCUMULATED = {"runner_config": {"gradient_accumulation_steps": 2}}
BLOCKS = {"use_flash_attention": True}


def sizes(layers, hidden, heads, groups, inner, length, words, **more) -> dict:
    return {
        "num_layers": layers, "hidden_size": hidden, "num_heads": heads, "n_kv_heads": groups,
        "intermediate_size": inner, "seq_length": length, "vocab_size": words, **more,
    }  # fmt: skip


def run(batch: int, shape: dict, more: dict):
    settings = {
        "model": {"model_config": {"preset": "llama_tiny", **shape}},
        **more,
        "runner_config": {"batch_size": batch, **more.get("runner_config", {})},
    }
    return read_run(settings)


def cut(settings, **degrees) -> Partition:
    """The model of a run, adapter included, in one process or over several."""
    config = settings.model.config
    return Partition(config, ParallelConfig(**degrees), targets.shapes(SPEC, config))


RECORDED = [
    (566, 1, sizes(1, 64, 4, 4, 256, 64, 500), {}),
    (975, 1, sizes(12, 64, 4, 4, 176, 64, 500), {}),
    (1417, 1, sizes(24, 64, 4, 4, 176, 64, 500), {}),
    (1743, 32, sizes(4, 512, 8, 8, 1408, 128, 1000), {}),
    (1678, 32, sizes(4, 512, 8, 2, 1408, 128, 1000), {}),
    (1089, 32, sizes(2, 512, 8, 8, 512, 128, 1000), {}),
    (1656, 32, sizes(2, 512, 8, 8, 4096, 128, 1000), {}),
    (1277, 1, sizes(2, 256, 8, 8, 704, 2048, 1000), {}),
    (1287, 1, sizes(2, 256, 8, 2, 704, 2048, 1000), {}),
    (2042, 4, sizes(8, 512, 8, 8, 1408, 256, 16000), {}),
    (3876, 4, sizes(12, 768, 12, 4, 2048, 256, 32000), {}),
    (2119, 1, sizes(4, 1024, 8, 8, 2816, 64, 16000), {}),
    (2711, 1, sizes(4, 1024, 8, 8, 2816, 64, 16000), ACCUMULATED),
    (1036, 1, sizes(12, 64, 4, 4, 176, 64, 500), RECOMPUTED),
    (1583, 32, sizes(4, 512, 8, 8, 1408, 128, 1000), RECOMPUTED),
    (2276, 32, sizes(4, 512, 8, 8, 4096, 128, 1000), RECOMPUTED),
    (1083, 1, sizes(1, 256, 8, 8, 704, 2048, 1000), RECOMPUTED),
    (605, 1, sizes(1, 64, 4, 4, 176, 64, 500, **BLOCKS), {}),
    (1160, 1, sizes(12, 64, 4, 4, 176, 64, 500, **BLOCKS), {}),
    (1151, 1, sizes(6, 64, 2, 2, 176, 1024, 500, **BLOCKS), {}),
    (989, 8, sizes(2, 256, 4, 4, 704, 512, 1000, **BLOCKS), {}),
    (1361, 16, sizes(2, 256, 8, 8, 704, 512, 1000, **BLOCKS), {}),
    (1418, 4, sizes(4, 256, 4, 1, 704, 1024, 1000, **BLOCKS), {}),
    (1032, 1, sizes(2, 256, 8, 8, 704, 2048, 1000, **BLOCKS), {}),
    (1533, 2, sizes(2, 512, 8, 2, 1408, 2048, 1000, **BLOCKS), {}),
    (3165, 2, sizes(6, 512, 8, 8, 1408, 2048, 1000, **BLOCKS), {}),
    (1688, 1, sizes(2, 512, 8, 8, 1408, 4096, 1000, **BLOCKS), {}),
    (1458, 1, sizes(12, 64, 4, 4, 176, 64, 500, **BLOCKS), RECOMPUTED),
    (1659, 4, sizes(4, 256, 4, 4, 704, 1024, 1000, **BLOCKS), RECOMPUTED),
]


@pytest.mark.parametrize(("megabytes", "batch", "shape", "more"), RECORDED)
def test_training_against_measured_peaks(megabytes, batch, shape, more):
    settings = run(batch, shape, more)
    found = memory.training(settings, cut(settings)).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


@pytest.mark.parametrize(("megabytes", "dropout"), [(1768, 0.1), (1592, 0.0)])
def test_an_adapter_against_measured_peaks(megabytes, dropout):
    """Rank 64 on q and v, whose heads are shared."""
    pet = {"lora_rank": 64, "lora_alpha": 128, "lora_dropout": dropout}
    settings = run(4, sizes(8, 512, 8, 2, 1408, 256, 16000, pet_config=pet), {})
    part = cut(settings)
    trained = targets.trained(part.shapes, settings.model.config.pet_config)
    found = memory.training(settings, part, trained=trained)
    assert megabytes / 1.1 < found.peak / 1e6 < megabytes * 1.1, f"{found.peak / 1e6:.0f} MB"
    assert found.optimizer == 8 * 8 * 64 * (512 + 512 + 512 + 128)


GENERATED = [
    (517, 1, 36, sizes(1, 32, 4, 4, 256, 64, 1000)),
    (667, 1, 36, sizes(12, 32, 4, 4, 256, 64, 1000)),
    (840, 1, 36, sizes(24, 32, 4, 4, 256, 64, 1000)),
    (1044, 1, 36, sizes(4, 1024, 8, 8, 2816, 64, 32000)),
    (2007, 1, 36, sizes(4, 1536, 8, 8, 16384, 64, 1000)),
    (1720, 8, 1024, sizes(2, 768, 12, 12, 2048, 1024, 1000)),
    (1596, 8, 1024, sizes(2, 768, 12, 3, 2048, 1024, 1000)),
    (1419, 64, 128, sizes(2, 1024, 8, 8, 2816, 128, 1000)),
    (2259, 64, 128, sizes(2, 1024, 8, 8, 8192, 128, 1000)),
    (2341, 1, 4096, sizes(2, 512, 8, 8, 1408, 4096, 1000)),
    (1030, 4, 2048, sizes(2, 512, 8, 8, 1408, 2048, 1000, **BLOCKS)),
    (1028, 1, 8192, sizes(2, 512, 8, 8, 1408, 8192, 1000)),
    (960, 1, 8192, sizes(2, 512, 8, 2, 1408, 8192, 1000)),
]


@pytest.mark.parametrize(("megabytes", "rows", "capacity", "shape"), GENERATED)
def test_generation_against_measured_peaks(megabytes, rows, capacity, shape):
    """The last two go block by block unasked."""
    settings = run(1, {**shape, "max_decode_length": capacity}, {})
    found = memory.generation(settings, cut(settings), rows=rows).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


def test_blocks_keep_no_probabilities():
    """Of two layers 4 B N S^2 bytes each, where 9 times that of 256 queries is worked in."""
    shape = sizes(2, 256, 4, 4, 704, 2048, 1000)
    whole, blocks = (run(2, {**shape, **more}, {}) for more in ({}, BLOCKS))
    one, other = (memory.training(settings, cut(settings)) for settings in (whole, blocks))
    scores = 4 * 2 * 4 * 2048
    saved = (2 + 1) * scores * 2048 - 9 * scores * 256
    assert one.activations - other.activations == pytest.approx(saved)


def test_keys_and_values_that_ranks_share():
    """34B has 8 heads: 2 for each of 4 ranks; of 16 ranks every two hold the same one."""
    settings = run(1, {"preset": "codellama_34b", "max_decode_length": 512}, {})
    for ranks, heads in ((1, 8), (4, 2), (8, 1), (16, 1)):
        part = cut(settings, model_parallel=ranks)
        found = memory.generation(settings, part, rows=3)
        assert found.cache == 2 * 4 * 48 * 3 * 512 * heads * 128
        sent = {entry.group: entry for entry in traffic.step(settings, part)}
        assert ("kv" in sent) == (ranks == 16)
    assert sent["kv"].ranks == 2 and sent["kv"].size == 4 * 48 * 2 * 8192 * 128


def test_an_ascend_card_holds_tensors_only():
    """Activations of half the size, neither libraries nor compiled graphs."""
    shape = {"preset": "codellama_34b", "seq_length": 4096, **BLOCKS}
    ascend = {"context": {"device_target": "Ascend"}}
    degrees = {"model_parallel": 4, "pipeline_stage": 2, "micro_batch_num": 2}
    settings = run(1, shape, {})
    wide = memory.training(settings, cut(settings, **degrees), 1)
    half = run(1, {**shape, "compute_dtype": "float16"}, ascend)
    narrow = memory.training(half, cut(half, **degrees), 1)
    assert narrow.weights == wide.weights and narrow.optimizer == wide.optimizer
    logits, waiting = 3.3 * 4 * 4096 * 32000, 4 * 4096 * 8192
    ours, theirs = (found.activations - waiting - logits / 4 for found in (narrow, wide))
    assert ours == pytest.approx(theirs / 2) and narrow.program == 0 < wide.program
