"""Every option of the network, against NumPy in float64, written from the paper's description.

The reference reads weights under MindFormers' names.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from mindspore import Tensor

from lm_core.checkpoint.layout import Memory
from lm_core.errors import ConfigError
from lm_core.testing import tiny
from lm_core.testing.parity import TOLERANCES
from lm_core.train.batch import causal_batch
from lm_pangualpha import SPEC
from lm_pangualpha.config import PanguAlphaConfig

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_heads": 4, "seq_length": 16}
OPTIONS: dict[str, dict] = {
    "as published": {},
    "the query layer alone": {"num_layers": 1},
    "many layers": {"num_layers": 5},
    "wide feed-forward layer": {"ffn_hidden_size": 72},
    "the port's activation": {"hidden_act": "gelu_exact"},
    "tanh": {"hidden_act": "gelu_tanh"},
    "residual after the norm": {"post_layernorm_residual": True},
    "more positions than are used": {"max_position_embeddings": 200},
    "another epsilon": {"layernorm_epsilon": 1e-2},
    "one head": {"num_heads": 1},
}
ACTIVATIONS = {
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_exact": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def normed(x: np.ndarray, theirs: dict, name: str, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * theirs[f"{name}.gamma"] + theirs[f"{name}.beta"]


def attention(asked: np.ndarray, x: np.ndarray, theirs: dict, name: str, heads: int) -> np.ndarray:
    """Queries from `asked`, keys and values from x; both [S, H]."""

    def dense(source: np.ndarray, number: int) -> np.ndarray:
        weight, bias = (theirs[f"{name}.dense{number}.{kind}"] for kind in ("weight", "bias"))
        return (source @ weight.T + bias).reshape(len(x), heads, -1)

    q, k, v = dense(asked, 1), dense(x, 2), dense(x, 3)
    scores = np.einsum("snd,tnd->nst", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = np.einsum("nst,tnd->snd", shares, v).reshape(len(x), -1)
    return mixed @ theirs[f"{name}.projection.weight"] + theirs[f"{name}.projection.bias"]


def layer(x: np.ndarray, theirs: dict, name: str, config: PanguAlphaConfig, asked=None):
    after, epsilon = config.post_layernorm_residual, config.layernorm_epsilon
    y = normed(x, theirs, f"{name}.layernorm1", epsilon)
    asked = y if asked is None else asked
    x = (y if after else x) + attention(asked, y, theirs, f"{name}.attention", config.num_heads)
    y = normed(x, theirs, f"{name}.layernorm2", epsilon)
    inner = y @ theirs[f"{name}.output.mapping.weight"] + theirs[f"{name}.output.mapping.bias"]
    inner = ACTIVATIONS[config.hidden_act](inner)
    out = inner @ theirs[f"{name}.output.projection.weight"]
    return (y if after else x) + out + theirs[f"{name}.output.projection.bias"]


def reference(ids: np.ndarray, model) -> np.ndarray:
    """Logits [S, V] of one text."""
    config = model.config
    table = SPEC.tables["mindformers"].save(Memory(tiny.weights(model)), config)
    theirs = {name: table.read(name).astype(np.float64) for name in table.specs}
    places = np.arange(len(ids))
    words = theirs["backbone.embedding.word_embedding.embedding_table"]
    x = words[ids] + theirs["backbone.embedding.position_embedding.embedding_table"][places]
    for number in range(config.num_layers - 1):
        x = layer(x, theirs, f"backbone.blocks.{number}", config)
    x = normed(x, theirs, "backbone.layernorm", config.layernorm_epsilon)
    asked = theirs["backbone.top_query_embedding.embedding_table"][places]
    return layer(x, theirs, "backbone.top_query_layer", config, asked) @ words.T


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_and_cached_steps(name):
    """Whole sequences, and the same one token at a time: each at its own position."""
    from lm_core.generation.cache import CachedDecoder

    model = tiny.model(SPEC, **{**SIZES, **OPTIONS[name]})
    ids = tiny.token_ids(64, (2, 9), seed=2)
    expected = np.stack([reference(row, model) for row in ids])
    assert expected.std() > 0.01
    near = {"rtol": 0, "atol": TOLERANCES.logits}
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), expected, **near)
    # Two rows that stand at different positions, as in a batch of unequal prompts.
    decoder = CachedDecoder(model, 2, 16)
    starts = np.array([4, 2])
    found = decoder.prefill(ids[:, :4], starts)
    for row, start in enumerate(starts):
        np.testing.assert_allclose(found[row], expected[row, start - 1], **near)
    for step in range(4):
        at = starts + step
        found = decoder.step(ids[[0, 1], at], at)
        for row in range(2):
            np.testing.assert_allclose(found[row], expected[row, at[row]], **near)


def test_documents_of_a_record_are_texts_by_themselves():
    """`eod_reset`: each has the logits that the reference gives it alone."""
    model = tiny.model(SPEC, **SIZES)
    ids = tiny.token_ids(64, (1, 12), seed=3)
    segments = np.array([[1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3]], np.int32)
    padded = {
        "input_ids": np.pad(ids, ((0, 0), (0, 1))),
        "segment_ids": segments[:, [*range(12), 11]],
    }
    inputs, _ = causal_batch(padded)
    found = model(Tensor(inputs)).asnumpy()[0]
    for first, end in ((0, 4), (4, 5), (5, 12)):
        expected = reference(ids[0, first:end], model)
        np.testing.assert_allclose(found[first:end], expected, rtol=0, atol=TOLERANCES.logits)


@pytest.mark.parametrize(
    "name", [name for name in OPTIONS if name not in ("residual after the norm",)]
)
def test_options_survive_a_published_configuration(name):
    config = tiny.config(SPEC, **OPTIONS[name])
    read = PanguAlphaConfig.from_hf(json.loads(json.dumps(config.to_hf())))
    assert read == PanguAlphaConfig.from_hf(read.to_hf())
    # The port has one length: rows of its table, which are `positions`.
    for key in ({*OPTIONS[name]} - {"max_position_embeddings"}) | {"ffn_size", "positions"}:
        assert getattr(read, key) == getattr(config, key), key
    assert (read.pad_token_id, read.eos_token_id, read.eod_token_id) == (6, 9, 6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale_attn_weights": False}, ["scale_attn_weights: is False"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings: is False"]),
        ({"activation_function": "mish"}, ["activation_function: is 'mish'", "quick_gelu"]),
        ({"num_heads": 5}, ["num_heads: 5 does not divide hidden_size 64"]),
        ({"num_layers": "many"}, ["num_layers", "many"]),
        ({"eos_token_id": 50000}, ["eos_token_id: 50000 is outside the vocabulary of 4000"]),
    ],
)
def test_published_configurations_that_are_not_built(values, words):
    with pytest.raises(ConfigError) as caught:
        PanguAlphaConfig.from_hf({**tiny.config(SPEC).to_hf(), **values})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_the_port_has_no_option_for():
    with pytest.raises(ConfigError, match="post_layernorm_residual: is True; the PyTorch port"):
        tiny.config(SPEC, post_layernorm_residual=True).to_hf()


def test_a_token_outside_the_vocabulary():
    with pytest.raises(ConfigError, match="eod_token_id: 40000 is outside the vocabulary"):
        tiny.config(SPEC, eod_token_id=40000)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_dropout_goes_on_and_off(rate):
    """Rates of 0 change nothing in training, others do, each at its own place."""
    names = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")
    ids = tiny.token_ids(64, (2, 9), seed=2)
    for where in names:
        rates = {**dict.fromkeys(names, 0.0), where: rate}
        model = tiny.model(SPEC, **{**SIZES, "num_layers": 1, **rates})
        still = float(model.loss(ids, ids).asnumpy())
        model.set_train(True)
        model.forget_graphs()
        moved = abs(float(model.loss(ids, ids).asnumpy()) - still)
        assert moved < 1e-6 if rate == 0.0 else moved > 1e-5, where
