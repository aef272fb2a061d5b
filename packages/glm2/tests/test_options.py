"""Every option of the network, against NumPy in float64, written from the published description.

The reference reads weights under the original names: one matrix for queries, keys and values, the
gate above the rest, rotary pairs of neighbours.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from lm_core import AutoModel
from lm_core.errors import ConfigError
from lm_core.testing import tiny
from lm_core.testing.parity import TOLERANCES
from lm_glm2 import SPEC
from lm_glm2.config import ChatGlm2Config

OPTIONS: dict[str, dict] = {
    "as published": {},
    "one group": {"multi_query_group_num": 1},
    "as many groups as heads": {"multi_query_group_num": 4},
    "no groups": {"multi_query_attention": False},
    "layer norms": {"rmsnorm": False, "layernorm_epsilon": 1e-3},
    "no last norm": {"post_layer_norm": False},
    "residual after the norm": {"apply_residual_connection_post_layernorm": True},
    "all biases": {"add_bias_linear": True, "add_qkv_bias": False},
    "no biases": {"add_qkv_bias": False},
    "wide heads": {"kv_channels": 24},
    "head size not given": {"kv_channels": None},
    "higher base": {"rope_ratio": 50.0},
    "stretched positions": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "softmax as computed": {
        "attention_softmax_in_fp32": False, "apply_query_key_layer_scaling": False,
    },
    "float32 between blocks": {"fp32_residual_connection": True},
    "all at once": {
        "multi_query_attention": False, "rmsnorm": False, "post_layer_norm": False,
        "apply_residual_connection_post_layernorm": True, "add_bias_linear": True,
        "kv_channels": 8,
    },
}  # fmt: skip


def normed(x: np.ndarray, theirs: dict, name: str, config: ChatGlm2Config) -> np.ndarray:
    if not config.rmsnorm:
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.layernorm_epsilon)
    return x * theirs[f"{name}.weight"] + theirs.get(f"{name}.bias", 0.0)


def linear(x: np.ndarray, theirs: dict, name: str) -> np.ndarray:
    return x @ theirs[f"{name}.weight"].T + theirs.get(f"{name}.bias", 0.0)


def rotated(x: np.ndarray, config: ChatGlm2Config) -> np.ndarray:
    """x: [S, N, D]. Turns the pairs (0, 1), (2, 3) ... of the first half of each head."""
    half = x.shape[-1] // 2
    steps = np.arange(0, half, 2) / half
    stretched = config.rope_scaling.factor if config.rope_scaling else 1.0
    angles = np.arange(len(x))[:, None] / stretched / (10000.0 * config.rope_ratio) ** steps
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    found = x.copy()
    even, odd = x[..., 0:half:2], x[..., 1:half:2]
    found[..., 0:half:2] = even * cos - odd * sin
    found[..., 1:half:2] = odd * cos + even * sin
    return found


def attention(x: np.ndarray, theirs: dict, name: str, config: ChatGlm2Config) -> np.ndarray:
    heads, size = config.num_heads, config.kv_channels or config.hidden_size // config.num_heads
    mixed = linear(x, theirs, f"{name}.query_key_value")
    if config.multi_query_attention:
        groups = config.multi_query_group_num
        q, k, v = np.split(mixed, [heads * size, (heads + groups) * size], -1)
        q = q.reshape(-1, heads, size)
        k, v = (np.repeat(a.reshape(-1, groups, size), heads // groups, 1) for a in (k, v))
    else:
        q, k, v = np.split(mixed.reshape(-1, heads, 3 * size), 3, -1)
    q, k = rotated(q, config), rotated(k, config)
    scores = np.einsum("snd,tnd->nst", q, k) / np.sqrt(size)
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    context = np.einsum("nst,tnd->snd", shares, v).reshape(len(x), heads * size)
    return linear(context, theirs, f"{name}.dense")


def mlp(x: np.ndarray, theirs: dict, name: str) -> np.ndarray:
    gate, rest = np.split(linear(x, theirs, f"{name}.dense_h_to_4h"), 2, -1)
    return linear(gate / (1.0 + np.exp(-gate)) * rest, theirs, f"{name}.dense_4h_to_h")


def reference(ids: np.ndarray, theirs: dict, config: ChatGlm2Config) -> np.ndarray:
    """Logits [S, V] of one text."""
    theirs = {name: array.astype(np.float64) for name, array in theirs.items()}
    x = theirs["transformer.embedding.word_embeddings.weight"][ids]
    after = config.apply_residual_connection_post_layernorm
    for number in range(config.num_layers):
        layer = f"transformer.encoder.layers.{number}"
        y = normed(x, theirs, f"{layer}.input_layernorm", config)
        x = (y if after else x) + attention(y, theirs, f"{layer}.self_attention", config)
        y = normed(x, theirs, f"{layer}.post_attention_layernorm", config)
        x = (y if after else x) + mlp(y, theirs, f"{layer}.mlp")
    if config.post_layer_norm:
        x = normed(x, theirs, "transformer.encoder.final_layernorm", config)
    return linear(x, theirs, "transformer.output_layer")


def published(model, folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(tiny.write_hf(model, SPEC, folder) / "model.safetensors")


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_and_cached_steps(name, tmp_path):
    """Whole sequences, and the same one token at a time."""
    from lm_core.generation.cache import CachedDecoder

    sizes = {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 64, "kv_channels": 8}
    model = tiny.model(SPEC, **{**sizes, **OPTIONS[name]})
    ids = tiny.token_ids(64, (1, 9), seed=2)
    if name == "higher base":  # which published files cannot say
        theirs = published(tiny.model(SPEC, **sizes), tmp_path)
    else:
        theirs = published(model, tmp_path)
    expected = reference(ids[0], theirs, model.config)
    assert expected.std() > 0.01
    near = {"rtol": 0, "atol": TOLERANCES.logits}
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy()[0], expected, **near)
    decoder = CachedDecoder(model, 1, 16)
    found = [decoder.prefill(ids[:, :4], np.array([4]))]
    found += [decoder.step(ids[:, t], np.array([t])) for t in range(4, 9)]
    np.testing.assert_allclose(np.concatenate(found), expected[3:], **near)
    if name != "higher base":  # and its weights come back as they were
        loaded = tiny.weights(AutoModel.from_pretrained(tmp_path))
        for key, array in tiny.weights(model).items():
            np.testing.assert_array_equal(loaded[key], array, err_msg=key)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "higher base"])
def test_options_survive_a_published_configuration(name):
    config = tiny.config(SPEC, **OPTIONS[name])
    written = json.loads(json.dumps(config.to_hf()))
    read = ChatGlm2Config.from_hf(written)
    assert read.copy(kv_channels=read.head_dim) == ChatGlm2Config.from_hf(read.to_hf())
    for key in (*OPTIONS[name], "head_dim", "kv_heads", "qkv_bias", "softmax_type"):
        if key not in ("kv_channels", "multi_query_group_num"):
            assert getattr(read, key) == getattr(config, key), key


def test_dropout_goes_on_and_off(tmp_path):
    """Rates of 0 change nothing in training, others do."""
    losses = {}
    ids = tiny.token_ids(64, (2, 9), seed=2)
    for rate in (0.0, 0.4):
        for where in ("hidden_dropout", "attention_dropout"):
            model = tiny.model(SPEC, vocab_size=64, **{where: rate})
            still = float(model.loss(ids, ids).asnumpy())
            model.set_train(True)
            model.forget_graphs()
            losses[where, rate] = float(model.loss(ids, ids).asnumpy()) - still
    assert abs(losses["hidden_dropout", 0.0]) < 1e-6 > abs(losses["attention_dropout", 0.0])
    assert abs(losses["hidden_dropout", 0.4]) > 1e-4 < abs(losses["attention_dropout", 0.4])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rope_ratio": 50}, ["rope_ratio: is 50", '"rope_scaling"', "ChatGLM2-6B-32K"]),
        ({"quantization_bit": 4}, ["quantization_bit: is 4", "0 only"]),
        ({"pre_seq_len": 128}, ["pre_seq_len: is 128"]),
        ({"original_rope": False}, ["original_rope: is False"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings: is True"]),
        ({"num_attention_heads": 5}, ["num_heads", "multi_query_group_num: 2 does not divide"]),
        ({"kv_channels": 6}, ["kv_channels: 6", "multiple of 4"]),
        ({"num_layers": "many"}, ["num_layers", "many"]),
    ],
)
def test_published_configurations_that_are_not_built(values, words):
    with pytest.raises(ConfigError) as caught:
        ChatGlm2Config.from_hf({**tiny.config(SPEC).to_hf(), **values})
    text = str(caught.value)
    assert all(word in text for word in words if word != "num_heads"), text
