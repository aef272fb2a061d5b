"""Adapters on Baichuan 2: by the names of others, on a fused matrix, and as the card loads them."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from lm_baichuan2 import SPEC
from lm_core import AutoModel, LoraConfig, job
from lm_core import spec as registry
from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout import Memory
from lm_core.cli import main
from lm_core.errors import ConfigError
from lm_core.peft import layout, targets
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import TOLERANCES

QKV = {f"layers.{layer}.attention.{name}" for layer in range(2) for name in "qkv"}
OUT = {f"layers.{layer}.attention.out" for layer in range(2)}
MLP = {f"layers.{layer}.mlp.{name}" for layer in range(2) for name in ("gate", "up", "down")}
FUSED = "model.layers.{}.self_attn.W_pack"
CARD = ".*wq|.*wk|.*wv"
NEAR = {"rtol": 0, "atol": TOLERANCES.logits}


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (CARD, QKV),
        (".*W_pack", QKV),
        (["W_pack"], QKV),
        (["W_pack", "o_proj"], QKV | OUT),
        (".*wq|.*wv", {name for name in QKV if name[-1] in "qv"}),
        (["gate_proj", "up_proj", "down_proj"], MLP),
        (".*feed_forward.w[123]", MLP),
        (None, QKV),
    ],
    # Sets have no order that is the same in all processes.
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_layers_have_the_names_of_all_layouts(pattern, layers):
    lora = LoraConfig(target_modules=pattern)
    assert set(targets.targets(SPEC, tiny.config(SPEC), lora)) == layers


@pytest.mark.parametrize("pattern", ["lm_head", ".*lm_head", "head"])
def test_the_normalised_head_has_none(pattern):
    with pytest.raises(ConfigError, match="pet_config.target_modules: "):
        targets.targets(SPEC, tiny.config(SPEC), LoraConfig(target_modules=pattern))


@pytest.mark.parametrize(("size", "width", "layers"), [("7b", 4096, 32), ("13b", 5120, 40)])
def test_the_packaged_runs_adapt_queries_keys_and_values(size, width, layers):
    config = registry.read_run(f"baichuan2_{size}_lora").model.config
    chosen = targets.targets(SPEC, config, config.pet_config)
    names = {f"layers.{i}.attention.{name}" for i in range(layers) for name in "qkv"}
    assert set(chosen) == names and set(chosen.values()) == {(width, width)}
    assert (config.pet_config.lora_rank, config.pet_config.scale) == (1, 32.0)


def test_three_adapters_in_one_matrix_for_peft(tmp_path):
    """Ours differ in A: theirs is of three times the rank, and is ours again when it is read."""
    model = adapted_model(SPEC, target_modules=CARD)
    ids = Tensor(tiny.token_ids(model.config.vocab_size, (2, 6)))
    model.save_pretrained(tmp_path / "ours")
    words = ["--input", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")]
    assert main(["convert", "baichuan2", *words, "--format", "peft"]) == 0
    written = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    rank = model.config.pet_config.lora_rank
    assert written[f"base_model.model.{FUSED.format(0)}.lora_A.weight"].shape == (3 * rank, 64)
    tiny.model(SPEC).save_pretrained(tmp_path / "base")
    loaded = AutoModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "theirs")
    np.testing.assert_allclose(loaded(ids).asnumpy(), model(ids).asnumpy(), **NEAR)


@pytest.fixture(scope="module")
def adapted():
    return adapted_model(SPEC, target_modules=CARD)


@pytest.mark.parametrize("form", ["a file", "base and adapter", "base alone"])
def test_the_three_forms_of_the_card(adapted, tmp_path, form):
    """`load_checkpoint` of a run with an adapter: without one in the files it is a new one."""
    weights = tiny.weights(adapted)
    own = {name: array for name, array in weights.items() if not layout.is_adapter_name(name)}
    lora = {name: array for name, array in weights.items() if name not in own}
    plain = adapted.config.copy(pet_config=None)
    base = tmp_path / "model_dir" / "Baichuan2-7B-Base.ckpt"
    base.parent.mkdir()
    ckpt.write(base, SPEC.tables["mindformers"].save(Memory(own), plain))
    if form == "base and adapter":
        arrays, _ = layout.save(
            lora, SPEC, adapted.config, adapted.config.pet_config, "mindformers"
        )
        assert "model.layers.0.attention.wq.mindpet_delta_lora_A" in arrays and len(arrays) == 12
        ckpt.write(base.parent / "lora.ckpt", Memory(arrays))
    pet = {"pet_type": "lora", "lora_rank": 3, "lora_alpha": 5, "target_modules": CARD}
    run = registry.read_run(
        {
            "model": {
                "model_config": {"preset": "baichuan2_tiny", "type": "LlamaConfig"}
                | {"pet_config": pet | {"lora_dropout": 0.0}},
                "arch": {"type": "Baichuan7BV2ForCausalLM"},
            },
            "load_checkpoint": str(base if form == "a file" else base.parent),
            "auto_trans_ckpt": True,
        }
    )
    model = job.load(run, run.load_checkpoint, job.join(run))
    found = tiny.weights(model)
    assert found.keys() == weights.keys()
    for name, array in own.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for name, array in lora.items():
        if form == "base and adapter":
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        elif name.endswith("lora_b"):
            assert not found[name].any(), name
