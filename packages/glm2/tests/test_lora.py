"""Adapters on ChatGLM2: by the names of others, and on its fused matrices."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from lm_core import AutoModel, LoraConfig, get_pet_model
from lm_core import spec as registry
from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout import Memory
from lm_core.peft import layout, targets
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import TOLERANCES
from lm_glm2 import SPEC

QKV = {f"layers.{layer}.attention.{name}" for layer in range(2) for name in "qkv"}
OUT = {f"layers.{layer}.attention.out" for layer in range(2)}
GATE = {f"layers.{layer}.mlp.{name}" for layer in range(2) for name in ("gate", "up")}
DOWN = {f"layers.{layer}.mlp.down" for layer in range(2)}
FUSED = "transformer.encoder.layers.{}.self_attention.query_key_value"


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (".*query_key_value", QKV),
        (".*query_key_value.*|.*dense.*", QKV | OUT | GATE | DOWN),
        (["query_key_value", "dense"], QKV | OUT),
        (["dense_h_to_4h", "dense_4h_to_h"], GATE | DOWN),
        (r".*attention\.[qv]", {name for name in QKV if name[-1] in "qv"}),
        ("transformer.output_layer", {"head"}),
    ],
    # Sets have no order that is the same in all processes.
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_layers_have_the_names_of_all_layouts(pattern, layers):
    lora = LoraConfig(target_modules=pattern)
    assert set(targets.targets(SPEC, tiny.config(SPEC), lora)) == layers


def test_the_packaged_run_adapts_queries_keys_and_values():
    config = registry.read_run("glm2_6b_lora").model.config
    chosen = targets.targets(SPEC, config, config.pet_config)
    assert len(chosen) == 3 * 28
    assert chosen["layers.27.attention.q"] == (4096, 4096)
    assert chosen["layers.27.attention.k"] == chosen["layers.27.attention.v"] == (4096, 256)
    assert (config.pet_config.lora_rank, config.pet_config.scale) == (8, 4.0)


def test_the_pattern_of_later_run_files():
    config = registry.read_run("glm2_6b_lora").model.config
    later = config.pet_config.model_copy(update={"target_modules": ".*query_key_value*"})
    assert targets.targets(SPEC, config, later) == targets.targets(SPEC, config, config.pet_config)


def fused_adapter(config, rank=3):
    """A and B of the fused matrix of each layer, as PEFT stores them, and that matrix's change."""
    rng = np.random.default_rng(5)
    rows = (config.num_heads + 2 * config.kv_heads) * config.head_dim
    pairs = {
        FUSED.format(layer): (
            rng.normal(0, 0.1, (rank, config.hidden_size)).astype(np.float32),
            rng.normal(0, 0.1, (rows, rank)).astype(np.float32),
        )
        for layer in range(config.num_layers)
    }
    return pairs, {name: 2.0 * b @ a for name, (a, b) in pairs.items()}


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Published folders of a model and of the same with the change added, and its logits."""
    folder, model = tmp_path_factory.mktemp("m"), tiny.model(SPEC)
    pairs, change = fused_adapter(model.config)
    tiny.write_hf(model, SPEC, folder / "base")
    tiny.write_hf(model, SPEC, folder / "merged")
    file = folder / "merged" / "model.safetensors"
    weights = load_file(file)
    for name, delta in change.items():
        weights[f"{name}.weight"] += delta
    save_file(weights, file)
    ids = Tensor(tiny.token_ids(model.config.vocab_size, (2, 6)))
    return folder / "base", pairs, ids, AutoModel.from_pretrained(folder / "merged")(ids).asnumpy()


@pytest.mark.parametrize("halves", ["ab", "AB"])
def test_mindformers_keeps_an_adapter_beside_the_weights(changed, tmp_path, halves):
    """`...query_key_value.mindpet_delta_lora_a` in one file with the weights, as it saves them."""
    base, pairs, ids, expected = changed
    model = AutoModel.from_pretrained(base)
    own = SPEC.tables["mindformers"].save(Memory(tiny.weights(model)), model.config)
    arrays = {name: own.read(name) for name in own.specs}
    for name, pair in pairs.items():
        for half, array in zip(halves, pair, strict=True):
            arrays[f"{name}.mindpet_delta_lora_{half}"] = array
    ckpt.write(tmp_path / "glm2_6b_lora.ckpt", Memory(arrays))
    lora = LoraConfig(lora_rank=3, lora_alpha=6.0, target_modules=".*query_key_value")
    config = model.config.copy(pet_config=lora.model_dump())
    loaded = AutoModel.from_pretrained(tmp_path / "glm2_6b_lora.ckpt", config=config)
    near = {"rtol": 0, "atol": TOLERANCES.logits}
    np.testing.assert_allclose(loaded(ids).asnumpy(), expected, **near)


def test_three_adapters_in_one_matrix_of_mindformers(tmp_path):
    """Ours differ in A: theirs is of three times the rank, and is ours again when it is read."""
    model = adapted_model(SPEC, target_modules=".*query_key_value")
    lora = {n: a for n, a in tiny.weights(model).items() if layout.is_adapter_name(n)}
    arrays, _ = layout.save(lora, SPEC, model.config, model.config.pet_config, "mindformers")
    rank = model.config.pet_config.lora_rank
    assert arrays[f"{FUSED.format(0)}.mindpet_delta_lora_A"].shape == (3 * rank, 64)
    found = layout.load(Memory(arrays), SPEC, model.config, model.config.pet_config)
    assert found.keys() == lora.keys()
    for name, array in lora.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_adapter_on_a_published_model_saves_and_loads(changed, tmp_path):
    base, _, ids, _ = changed
    settings = LoraConfig(lora_rank=2, target_modules=".*dense_h_to_4h")
    model = get_pet_model(AutoModel.from_pretrained(base), settings)
    plain = AutoModel.from_pretrained(base)(ids).asnumpy()
    np.testing.assert_array_equal(model(ids).asnumpy(), plain)
    model.save_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(AutoModel.from_pretrained(tmp_path / "m")(ids).asnumpy(), plain)
