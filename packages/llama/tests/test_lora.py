"""Adapters on Llama: by the names of others, and PEFT's there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lm_core import AutoModel, LoraConfig, get_pet_model
from lm_core import spec as registry
from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout import Memory
from lm_core.cli import main
from lm_core.errors import ConfigError
from lm_core.peft import layout, targets
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import TOLERANCES
from lm_llama import SPEC

CASE = Path(__file__).parent / "goldens" / "llama2_lora"
ATTENTION = {f"layers.{layer}.attention.{name}" for layer in range(2) for name in "qkv"}
OUT = {f"layers.{layer}.attention.out" for layer in range(2)}
MLP = {f"layers.{layer}.mlp.{name}" for layer in range(2) for name in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (".*wq|.*wk|.*wv|.*wo", ATTENTION | OUT),
        (".*wq|.*wv", {name for name in ATTENTION if name[-1] in "qv"}),
        (".*feed_forward.w[123]", MLP),
        (".*w1|.*w3", {name for name in MLP if not name.endswith("down")}),
        (["q_proj", "k_proj", "v_proj"], ATTENTION),
        (["gate_proj", "up_proj", "down_proj"], MLP),
        (r".*attention\.(q|k|v|out)", ATTENTION | OUT),
        ("lm_head", {"head"}),
        ("output", {"head"}),
    ],
    # Sets have no order that is the same in all processes.
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_layers_have_the_names_of_all_layouts(pattern, layers):
    lora = LoraConfig(target_modules=pattern)
    assert set(targets.targets(SPEC, tiny.config(SPEC), lora)) == layers


def test_unknown_layers_are_refused():
    lora = LoraConfig(target_modules=".*c_attn")
    with pytest.raises(ConfigError, match=r"'.*c_attn' is the name of no linear layer of llama"):
        targets.targets(SPEC, tiny.config(SPEC), lora)


def test_the_packaged_run_adapts_all_projections_of_attention():
    config = registry.read_run("llama2_7b_lora").model.config
    chosen = targets.targets(SPEC, config, config.pet_config)
    names = {f"layers.{i}.attention.{name}" for i in range(32) for name in ("q", "k", "v", "out")}
    assert set(chosen) == names and set(chosen.values()) == {(4096, 4096)}


@pytest.mark.parity
def test_pefts_adapter_there_and_back(tmp_path):
    """The recorded one through a model directory of ours and back: PEFT's names and numbers."""
    from mindspore import Tensor

    with np.load(CASE / "golden.npz", allow_pickle=False) as golden:
        ids, expected = Tensor(golden["input_ids"].astype(np.int32)), golden["logits"]
    AutoModel.from_pretrained(CASE, adapter=CASE / "adapter").save_pretrained(tmp_path / "ours")
    words = ["--input", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")]
    assert main(["convert", "llama", *words, "--format", "peft"]) == 0
    again = AutoModel.from_pretrained(CASE, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(again(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)
    written = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    given = load_file(CASE / "adapter" / "adapter_model.safetensors")
    assert written.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    files = (tmp_path / "theirs", CASE / "adapter")
    ours, theirs = (json.loads((path / "adapter_config.json").read_text()) for path in files)
    for key in ("r", "lora_alpha", "target_modules", "fan_in_fan_out", "bias", "task_type"):
        assert ours[key] == theirs[key], key


def test_mindformers_keeps_an_adapter_beside_the_weights(tmp_path):
    """Two .ckpt files: `model.layers.0.attention.wq.mindpet_delta_lora_a` and the rest."""
    from mindspore import Tensor

    model = adapted_model(SPEC, target_modules=".*wq|.*wk|.*wv|.*wo")
    ids = Tensor(tiny.token_ids(model.config.vocab_size, (2, 6)))
    weights = tiny.weights(model)
    own = {name: array for name, array in weights.items() if not layout.is_adapter_name(name)}
    lora = {name: array for name, array in weights.items() if name not in own}
    arrays, _ = layout.save(lora, SPEC, model.config, model.config.pet_config, "mindformers")
    assert "model.layers.0.attention.wq.mindpet_delta_lora_A" in arrays and len(arrays) == 16
    a, b = (arrays[f"model.layers.1.attention.wk.mindpet_delta_lora_{half}"] for half in "AB")
    assert (a.shape, b.shape) == ((3, 64), (32, 3))
    plain = model.config.copy(pet_config=None)
    ckpt.write(tmp_path / "llama.ckpt", SPEC.tables["mindformers"].save(Memory(own), plain))
    ckpt.write(tmp_path / "lora.ckpt", Memory(arrays))
    loaded = AutoModel.from_pretrained(tmp_path, config=model.config)
    np.testing.assert_allclose(
        loaded(ids).asnumpy(), model(ids).asnumpy(), rtol=0, atol=TOLERANCES.logits
    )


def test_an_adapter_on_metas_files(tmp_path):
    """Merged, it can be written for Meta's code; beside the weights it cannot."""
    from mindspore import Tensor

    base = tiny.model(SPEC)
    base.save_pretrained(tmp_path / "base")
    words = ["--input", str(tmp_path / "base"), "--output", str(tmp_path / "meta")]
    assert main(["convert", "llama", *words, "--format", "meta"]) == 0
    model = adapted_model(SPEC)
    model.save_pretrained(tmp_path / "adapted")
    peft = ["--input", str(tmp_path / "adapted"), "--output", str(tmp_path / "peft")]
    assert main(["convert", "llama", *peft, "--format", "peft"]) == 0
    ids = Tensor(tiny.token_ids(model.config.vocab_size, (2, 6)))
    adapted = get_pet_model(AutoModel.from_pretrained(tmp_path / "meta"), tmp_path / "peft")
    expected = model(ids).asnumpy()
    np.testing.assert_allclose(adapted(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)
    merge = ["--load_checkpoint", str(tmp_path / "meta"), "--load_adapter", str(tmp_path / "peft")]
    merge += ["--output", str(tmp_path / "merged"), "--format", "meta"]
    assert main(["merge", "llama", *merge]) == 0
    assert "consolidated.safetensors" in {p.name for p in (tmp_path / "merged").iterdir()}
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(merged(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)
