"""The memory model against peaks of real processes, recorded on two cores of an x86-64 CPU.

Each record is the greatest resident size, in MB, of `Trainer.train()` over two updates of a GPT-2
of these sizes. What is foretold must be within a fifth of it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_core.config.parallel import ParallelConfig
from lm_core.nn import memory
from lm_core.parallel.partition import Partition
from lm_core.peft import targets
from lm_core.spec import read_run
from lm_gpt2 import SPEC

OFF = {"hidden_dropout_rate": 0.0, "attention_dropout_rate": 0.0, "embedding_dropout_prob": 0.0}


def run(batch: int, sizes: dict, **more):
    settings = {
        "model": {"model_config": {"preset": "gpt2_tiny", **sizes}},
        "runner_config": {"batch_size": batch, **more.pop("runner", {})},
    }
    return read_run({**settings, **more})


def cut(settings, **degrees) -> Partition:
    """The model of a run, adapter included, in one process or over several."""
    config = settings.model.config
    return Partition(config, ParallelConfig(**degrees), targets.shapes(SPEC, config))


def sizes(layers, hidden, heads, length, words, **more) -> dict:
    return {
        "num_layers": layers, "hidden_size": hidden, "num_heads": heads, "seq_length": length,
        "vocab_size": words, **more,
    }  # fmt: skip


RECOMPUTED = {"recompute_config": {"recompute": True}}
BLOCKS = {"attention_dropout_rate": 0.0, "use_flash_attention": True}
ACCUMULATED = {"runner": {"gradient_accumulation_steps": 2}}
RECORDED = [
    (653, 1, sizes(2, 64, 4, 64, 500), {}),
    (4717, 4, sizes(12, 768, 12, 256, 50257), {}),
    (4332, 4, sizes(12, 768, 12, 256, 50257, **OFF), {}),
    (3593, 1, sizes(12, 768, 12, 64, 50257), {}),
    (1544, 4, sizes(2, 256, 4, 256, 50257), {}),
    (4042, 16, sizes(2, 256, 4, 256, 50257), {}),
    (2277, 1, sizes(1, 1024, 2, 64, 60000, **OFF), {}),
    (1926, 4, sizes(4, 256, 4, 1024, 1000), {}),
    (1553, 4, sizes(4, 256, 4, 1024, 1000, **OFF), {}),
    (4027, 16, sizes(24, 128, 4, 256, 1000), {}),
    (3434, 2, sizes(48, 32, 4, 32, 1000), {}),
    (1614, 32, sizes(4, 128, 8, 256, 1000, **OFF), {}),
    (2170, 32, sizes(4, 512, 8, 128, 1000), {}),
    (1852, 32, sizes(4, 512, 2, 128, 1000, **OFF), {}),
    (1077, 32, sizes(2, 256, 2, 128, 1000, expand_ratio=8, **OFF), {}),
    (870, 32, sizes(2, 256, 2, 128, 1000, expand_ratio=1, **OFF), {}),
    (6119, 1, sizes(12, 768, 12, 1024, 50257), {}),
    (8691, 1, sizes(24, 1024, 16, 128, 50257), RECOMPUTED),
    (1385, 1, sizes(2, 256, 4, 2048, 1000), {}),
    (2452, 1, sizes(2, 768, 12, 1024, 50257), {}),
    (1363, 16, sizes(4, 256, 4, 256, 1000), RECOMPUTED),
    (1869, 32, sizes(4, 512, 8, 128, 1000), RECOMPUTED),
    (1535, 32, sizes(4, 512, 8, 128, 1000, **OFF), RECOMPUTED),
    (2156, 1, sizes(12, 512, 4, 32, 500), ACCUMULATED),
    (980, 16, sizes(2, 256, 4, 256, 1000, **OFF), ACCUMULATED),
    (1809, 4, sizes(2, 256, 4, 256, 50257), ACCUMULATED),
    (1535, 4, sizes(4, 256, 4, 1024, 1000, **{**OFF, **BLOCKS}), {}),
    (3303, 16, sizes(4, 512, 8, 512, 1000, **BLOCKS), {}),
]


@pytest.mark.parametrize(("megabytes", "batch", "shape", "more"), RECORDED)
def test_training_against_measured_peaks(megabytes, batch, shape, more):
    settings = run(batch, shape, **{key: dict(value) for key, value in more.items()})
    found = memory.training(settings, cut(settings)).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


@pytest.mark.parametrize(("megabytes", "dropout"), [(3051, 0.1), (2858, 0.0)])
def test_an_adapter_against_measured_peaks(megabytes, dropout):
    """124M, rank 64 on q and v; the base without dropout."""
    pet = {"lora_rank": 64, "lora_alpha": 128, "lora_dropout": dropout}
    settings = run(4, {**sizes(12, 768, 12, 256, 50257, **OFF), "pet_config": pet})
    part = cut(settings)
    trained = targets.trained(part.shapes, settings.model.config.pet_config)
    found = memory.training(settings, part, trained=trained)
    assert megabytes / 1.2 < found.peak / 1e6 < megabytes * 1.2, f"{found.peak / 1e6:.0f} MB"
    assert found.optimizer == 8 * 12 * 2 * 2 * 64 * 768


GENERATED = [
    (587, 1, 36, sizes(12, 32, 4, 64, 1000)),
    (689, 1, 36, sizes(24, 32, 4, 64, 1000)),
    (2711, 16, 1024, sizes(2, 768, 12, 1024, 1000)),
]


@pytest.mark.parametrize(("megabytes", "rows", "capacity", "shape"), GENERATED)
def test_generation_against_measured_peaks(megabytes, rows, capacity, shape):
    settings = run(1, {**shape, "max_decode_length": capacity})
    found = memory.generation(settings, cut(settings), rows=rows).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


@pytest.mark.parametrize("preset", SPEC.presets)
def test_parts_are_all_parameters(preset):
    config = SPEC.presets[preset]
    shapes = SPEC.tables["hf"].shapes(config)
    count = config.parameter_count()
    assert sum(memory.parts(shapes).values()) == count
    assert Partition(config, ParallelConfig(), shapes).numbers(0) == count


def test_more_ranks_hold_less():
    settings = run(8, sizes(8, 64, 4, 32, 400))
    whole = memory.training(settings, cut(settings))
    for degrees in (
        {"model_parallel": 2},
        {"pipeline_stage": 2, "micro_batch_num": 2},
        {"data_parallel": 2, "optimizer_shard": True},
    ):
        part = memory.training(settings, cut(settings, **degrees))
        assert part.peak < whole.peak and part.optimizer < whole.optimizer
    alike = memory.training(settings, cut(settings, data_parallel=2))
    assert alike.weights == whole.weights and alike.optimizer == whole.optimizer
    assert alike.peak >= whole.peak


def test_every_micro_batch_has_the_size_of_a_batch():
    """A stage works on one batch, and keeps the float32 inputs of those that are on their way."""
    settings = run(8, sizes(8, 64, 4, 32, 400))
    tokens = 8 * 32
    whole = memory.training(settings, cut(settings))
    for batches in (4, 6, 40):
        part = cut(settings, pipeline_stage=4, micro_batch_num=batches)
        found = [memory.training(settings, part, stage) for stage in range(4)]
        first, second, third, last = (one.activations for one in found)
        assert second - third == 4 * tokens * 64
        # Ids are all that the first stage gets.
        assert first - second == 4 * tokens * (4 - 3 * 64)
        assert last - third == pytest.approx(3.3 * 4 * tokens * 400 - 4 * tokens * 64)
        assert all(one.buffers == one.weights for one in found)
    assert whole.buffers == 0


def test_the_stage_that_takes_most():
    # A table of 20,000 rows and logits against blocks of 64.
    settings = run(8, sizes(4, 64, 4, 32, 20000))
    part = cut(settings, pipeline_stage=4, micro_batch_num=4)
    assert memory.fullest(settings, part) == 3
    peaks = [memory.training(settings, part, stage).peak for stage in range(4)]
    assert max(peaks) == peaks[3] and peaks[0] > peaks[1]
    # With few words it is the first stage that keeps more than its ids: the second.
    small = run(8, sizes(4, 64, 4, 32, 200))
    part = cut(small, pipeline_stage=3, micro_batch_num=3)
    peaks = [memory.training(small, part, stage).peak for stage in range(3)]
    assert memory.fullest(small, part) == peaks.index(max(peaks)) == 0  # it has two of four blocks


def test_what_tensor_parallel_ranks_keep_whole():
    """The table, unless it is cut by vocabulary, and with it the logits."""
    settings = run(8, sizes(2, 64, 4, 32, 400))
    table, position = 400 * 64, 32 * 64
    whole, split = (
        cut(settings, model_parallel=4),
        cut(settings, model_parallel=4, vocab_emb_dp=False),
    )
    assert whole.numbers(0) - split.numbers(0) == table * 3 / 4
    inside = 2 * (12 * 64 * 64 / 4 + (3 + 4) * 64 / 4 + 2 * 64 + 4 * 64)
    assert whole.numbers(0) == table + position + inside + 2 * 64
    logits = 3.3 * 4 * 8 * 32 * 400
    kept = [memory.training(settings, part).activations for part in (whole, split)]
    assert kept[0] - kept[1] == pytest.approx(logits * 3 / 4)


def test_looking_builds_nothing_and_loads_no_mindspore():
    """The largest model too, alone and cut over 128 processes."""
    program = """
import sys
from lm_core.cli import main
status = main(["config", "gpt2_52b", "--changed"]) or main(["plan", "gpt2_52b"])
sys.exit(status or "mindspore" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "gpt2_52b: 51,966,533,632 parameters" in done.stdout
    assert "each of 128" in done.stdout and "does not fit" in done.stdout
