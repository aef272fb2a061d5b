"""What others call PanGu-alpha's weights.

Our linear weights and the table of tokens, which is the output head too, are stored [in, out].
MindFormers and the official release keep query, key and value [out, in] and their other two kinds
of weight [in, out]; the PyTorch port stores all [out, in]. The query layer is the last of ours.
"""

from __future__ import annotations

from typing import Any

from lm_core.checkpoint.layout import Slices, Table, Tie, Transpose
from lm_core.checkpoint.layout.mindformers import TRAINING_STATE
from lm_core.checkpoint.layout.shapes import norm, plain_block
from lm_core.checkpoint.layout.tensors import Shape
from lm_pangualpha.config import PanguAlphaConfig


def shapes(config: PanguAlphaConfig) -> dict[str, Shape]:
    """All parameters of the network under our own names."""
    hidden, inner, last = config.hidden_size, config.ffn_size, config.num_layers - 1
    found: dict[str, Shape] = {
        "embedding.weight": (hidden, config.vocab_size),
        "position_embedding.weight": (config.positions, hidden),
    }
    for layer in range(config.num_layers):
        found |= plain_block(layer, hidden, inner)
    found |= norm(f"layers.{last}.norm", hidden)
    found["query_embedding.weight"] = (config.positions, hidden)
    return found


# Their name within a layer, ours, and whether the weight of the first is [out, in].
_HF_LAYER = (
    ("ln_1", "attention_norm", False),
    ("attn.q_proj", "attention.q", True),
    ("attn.k_proj", "attention.k", True),
    ("attn.v_proj", "attention.v", True),
    ("attn.c_proj", "attention.out", True),
    ("ln_2", "mlp_norm", False),
    ("mlp.c_fc", "mlp.up", True),
    ("mlp.c_proj", "mlp.down", True),
)
_MINDFORMERS_LAYER = (
    ("layernorm1", "attention_norm", False),
    ("attention.dense1", "attention.q", True),
    ("attention.dense2", "attention.k", True),
    ("attention.dense3", "attention.v", True),
    ("attention.projection", "attention.out", False),
    ("layernorm2", "mlp_norm", False),
    ("output.mapping", "mlp.up", False),
    ("output.projection", "mlp.down", False),
)
_Layer = tuple[tuple[str, str, bool], ...]


def _rows(theirs: str, ours: str, layer: _Layer, norm: tuple[str, str]) -> list[tuple[Any, ...]]:
    """Rows of a layer; `norm`: what theirs calls weight and bias of a norm."""
    found: list[tuple[Any, ...]] = []
    for their_name, our_name, transposed in layer:
        weight, bias = norm if our_name.endswith("norm") else ("weight", "bias")
        operations = (Transpose(),) if transposed else ()
        start, end = f"{theirs}.{their_name}", f"{ours}.{our_name}"
        found.append((f"{start}.{weight}", f"{end}.weight", *operations))
        found.append((f"{start}.{bias}", f"{end}.bias"))
    return found


_OF_HF, _OF_MINDSPORE = ("weight", "bias"), ("gamma", "beta")

_HF = [
    ("transformer.wte.weight", "embedding.weight", Transpose()),
    ("transformer.wpe.weight", "position_embedding.weight"),
    *_rows("transformer.h.{}", "layers.{}", _HF_LAYER, _OF_HF),
    ("transformer.ln_f.weight", "layers.{last}.norm.weight"),
    ("transformer.ln_f.bias", "layers.{last}.norm.bias"),
    ("transformer.wqe.weight", "query_embedding.weight"),
    *_rows("transformer.h.{last}", "layers.{last}", _HF_LAYER, _OF_HF),
    ("lm_head.weight", "head.weight", Tie("embedding.weight"), Transpose()),
]

_MINDFORMERS = [
    ("backbone.embedding.word_embedding.embedding_table", "embedding.weight", Transpose()),
    ("backbone.embedding.position_embedding.embedding_table", "position_embedding.weight"),
    *_rows("backbone.blocks.{}", "layers.{}", _MINDFORMERS_LAYER, _OF_MINDSPORE),
    ("backbone.layernorm.gamma", "layers.{last}.norm.weight"),
    ("backbone.layernorm.beta", "layers.{last}.norm.bias"),
    ("backbone.top_query_embedding.embedding_table", "query_embedding.weight"),
    *_rows("backbone.top_query_layer", "layers.{last}", _MINDFORMERS_LAYER, _OF_MINDSPORE),
]

# The published parts have the names of MindFormers for everything but the three tables, which their
# authors' programs took from the arrays beside them.
_OFFICIAL = Slices(
    files="filerted_{}.ckpt",  # as it is spelled there
    arrays={
        "word_embedding.npy": "backbone.embedding.word_embedding.embedding_table",
        "position_embedding.npy": "backbone.embedding.position_embedding.embedding_table",
        "top_query_embedding.npy": "backbone.top_query_embedding.embedding_table",
    },
    skipped=(*TRAINING_STATE, r"(.*[._])?embedding_table"),
)


def _blocks(config: PanguAlphaConfig) -> int:
    """Layers below the query layer."""
    return config.num_layers - 1


TABLES = {
    "hf": Table(
        _HF,
        shapes,
        name="hf",
        # Causal masks that the port stores with the weights.
        ignore=[r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"],
        layers=_blocks,
        published={"pangualpha_2_6b": "imone/pangu_2_6B"},
    ),
    "mindformers": Table(
        _MINDFORMERS, shapes, name="mindformers", ignore=TRAINING_STATE, layers=_blocks
    ),
    "official": Table(_MINDFORMERS, shapes, name="official", layers=_blocks, slices=_OFFICIAL),
}
