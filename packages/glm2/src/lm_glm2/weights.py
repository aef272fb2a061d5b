"""What others call ChatGLM2's weights.

Linear weights are stored [out, in] everywhere but here. Queries, keys and values are one matrix,
all heads of queries, then those of keys, then those of values (or head by head, where no heads are
shared); the gate of the feed-forward layer stands above the rest. Rotary rows are pairs of
neighbours.
"""

from __future__ import annotations

from operator import attrgetter

from lm_core.checkpoint.layout import Each, PermuteRope, Split, SplitHeads, Table, Transpose
from lm_core.checkpoint.layout.mindformers import TRAINING_STATE
from lm_core.checkpoint.layout.shapes import gated_block, norm
from lm_core.checkpoint.layout.tensors import Shape
from lm_glm2.config import ChatGlm2Config


def shapes(config: ChatGlm2Config) -> dict[str, Shape]:
    """All parameters of the network under our own names."""
    hidden, (queries, keys, _) = config.hidden_size, _qkv_rows(config)
    found: dict[str, Shape] = {"embedding.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        found |= gated_block(
            layer,
            hidden,
            config.intermediate_size,
            queries=queries,
            keys=keys,
            norm_bias=not config.rmsnorm,
            qkv_bias=config.qkv_bias,
            bias=config.add_bias_linear,
        )
    if config.post_layer_norm:
        found |= norm("norm", hidden, bias=not config.rmsnorm)
    found["head.weight"] = (hidden, config.vocab_size)
    return found


def _qkv_rows(config: ChatGlm2Config) -> list[int]:
    heads, keys = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
    return [heads, keys, keys]


_ROPE = PermuteRope(attrgetter("head_dim"), attrgetter("rotary_dim"))
_QKV = (
    SplitHeads(3, attrgetter("head_dim"), lambda config: not config.multi_query_attention),
    Split(_qkv_rows),
    Each(_ROPE, _ROPE, None),
)


def _ours(layer: str, *names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Weights and biases of linear layers that are one of theirs."""
    stems = [f"layers.{{}}.{layer}.{name}" for name in names]
    return tuple(f"{stem}.weight" for stem in stems), tuple(f"{stem}.bias" for stem in stems)


def _rows(table: str) -> list[tuple]:
    """MindFormers kept all names but that of the table."""
    block = "transformer.encoder.layers.{}."
    qkv, gate = _ours("attention", "q", "k", "v"), _ours("mlp", "gate", "up")
    attention, mlp = f"{block}self_attention.", f"{block}mlp."
    last = "transformer.encoder.final_layernorm"
    return [
        (f"transformer.embedding.{table}", "embedding.weight"),
        (f"{block}input_layernorm.weight", "layers.{}.attention_norm.weight"),
        (f"{block}input_layernorm.bias", "layers.{}.attention_norm.bias"),
        (f"{attention}query_key_value.weight", qkv[0], *_QKV, Transpose()),
        (f"{attention}query_key_value.bias", qkv[1], *_QKV),
        (f"{attention}dense.weight", "layers.{}.attention.out.weight", Transpose()),
        (f"{attention}dense.bias", "layers.{}.attention.out.bias"),
        (f"{block}post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
        (f"{block}post_attention_layernorm.bias", "layers.{}.mlp_norm.bias"),
        (f"{mlp}dense_h_to_4h.weight", gate[0], Split(2), Transpose()),
        (f"{mlp}dense_h_to_4h.bias", gate[1], Split(2)),
        (f"{mlp}dense_4h_to_h.weight", "layers.{}.mlp.down.weight", Transpose()),
        (f"{mlp}dense_4h_to_h.bias", "layers.{}.mlp.down.bias"),
        (f"{last}.weight", "norm.weight"),
        (f"{last}.bias", "norm.bias"),
        ("transformer.output_layer.weight", "head.weight", Transpose()),
    ]


# The angles are in files of the first version, and in what is saved from them.
_ANGLES = r"transformer\.rotary_pos_emb\.inv_freq"

TABLES = {
    "hf": Table(
        _rows("word_embeddings.weight"),
        shapes,
        name="hf",
        ignore=[_ANGLES],
        published={"glm2_6b": "THUDM/chatglm2-6b"},
    ),
    "mindformers": Table(
        _rows("embedding_table"),
        shapes,
        name="mindformers",
        ignore=[_ANGLES, *TRAINING_STATE],
    ),
}
