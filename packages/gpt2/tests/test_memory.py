"""The memory model against peaks of real processes, recorded on two cores of an x86-64 CPU.

Each record is the greatest resident size, in MB, of `Trainer.train()` over two updates of a GPT-2
of these sizes. What is foretold must be within a fifth of it.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from lm_core.cli import run_verb
from lm_core.nn import memory
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


def sizes(layers, hidden, heads, length, words, **more) -> dict:
    return {
        "num_layers": layers, "hidden_size": hidden, "num_heads": heads, "seq_length": length,
        "vocab_size": words, **more,
    }  # fmt: skip


RECOMPUTED = {"recompute_config": {"recompute": True}}
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
]


@pytest.mark.parametrize(("megabytes", "batch", "shape", "more"), RECORDED)
def test_training_against_measured_peaks(megabytes, batch, shape, more):
    settings = run(batch, shape, **{key: dict(value) for key, value in more.items()})
    shapes = SPEC.tables["hf"].shapes(settings.model.config)
    found = memory.training(settings, shapes).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


@pytest.mark.parametrize(("megabytes", "dropout"), [(3051, 0.1), (2858, 0.0)])
def test_an_adapter_against_measured_peaks(megabytes, dropout):
    """124M, rank 64 on q and v; the base without dropout."""
    pet = {"lora_rank": 64, "lora_alpha": 128, "lora_dropout": dropout}
    settings = run(4, {**sizes(12, 768, 12, 256, 50257, **OFF), "pet_config": pet})
    config = settings.model.config
    shapes = targets.shapes(SPEC, config)
    chosen = targets.trained(shapes, config.pet_config)
    trained = {name: shape for name, shape in shapes.items() if name in chosen}
    found = memory.training(settings, shapes, trained=trained)
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
    shapes = SPEC.tables["hf"].shapes(settings.model.config)
    found = memory.generation(settings, shapes, rows=rows).peak / 1e6
    assert megabytes / 1.2 < found < megabytes * 1.2, f"{found:.0f} MB"


@pytest.mark.parametrize("preset", SPEC.presets)
def test_parts_are_all_parameters(preset):
    config = SPEC.presets[preset]
    shapes = SPEC.tables["hf"].shapes(config)
    assert sum(memory.parts(shapes).values()) == config.parameter_count()
    assert memory.held(shapes, memory.Rank(config.num_layers), config.num_layers) == sum(
        math.prod(shape) for shape in shapes.values()
    )


def test_more_ranks_hold_less():
    settings = run(8, sizes(8, 64, 4, 32, 400))
    shapes = SPEC.tables["hf"].shapes(settings.model.config)
    whole = memory.training(settings, shapes)
    for rank in (memory.Rank(8, split=2), memory.Rank(4), memory.Rank(8, state_split=2)):
        part = memory.training(settings, shapes, rank)
        assert part.peak < whole.peak and part.optimizer < whole.optimizer
    # Four parts of the batch, two of them on their way.
    staged = memory.training(settings, shapes, memory.Rank(8, in_flight=2, parts=4))
    assert staged.weights == whole.weights and staged.activations < whole.activations


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


@pytest.mark.parametrize("name", SPEC.run_names())
def test_every_packaged_run_can_be_planned(name, capsys):
    assert run_verb("plan", SPEC, ["--config", name]) == 0
    assert capsys.readouterr().out.count("  peak ") == 2
