"""What others call Baichuan 2's weights.

Linear weights are stored [out, in] everywhere but here. As published, queries, keys and values are
one matrix; MindFormers keeps them apart, under Llama's names. Rows of the head have any length in
both: they are normalised when they are used.
"""

from __future__ import annotations

from lm_baichuan2.config import Baichuan2Config
from lm_core.checkpoint.layout import Split, Table, Transpose
from lm_core.checkpoint.layout.mindformers import TRAINING_STATE
from lm_core.checkpoint.layout.shapes import gated_block
from lm_core.checkpoint.layout.tensors import Shape


def shapes(config: Baichuan2Config) -> dict[str, Shape]:
    """All parameters of the network under our own names."""
    hidden = config.hidden_size
    found: dict[str, Shape] = {"embedding.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        found |= gated_block(layer, hidden, config.ffn_size)
    found["norm.weight"] = (hidden,)
    found["head.weight"] = (hidden, config.vocab_size)
    return found


_QKV = tuple(f"layers.{{}}.attention.{name}.weight" for name in "qkv")

_HF = [
    ("model.embed_tokens.weight", "embedding.weight"),
    ("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight"),
    ("model.layers.{}.self_attn.W_pack.weight", _QKV, Split(3), Transpose()),
    ("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.out.weight", Transpose()),
    ("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    ("model.layers.{}.mlp.gate_proj.weight", "layers.{}.mlp.gate.weight", Transpose()),
    ("model.layers.{}.mlp.up_proj.weight", "layers.{}.mlp.up.weight", Transpose()),
    ("model.layers.{}.mlp.down_proj.weight", "layers.{}.mlp.down.weight", Transpose()),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "head.weight", Transpose()),
]

_MINDFORMERS = [
    ("model.tok_embeddings.embedding_weight", "embedding.weight"),
    ("model.layers.{}.attention_norm.weight", "layers.{}.attention_norm.weight"),
    ("model.layers.{}.attention.wq.weight", "layers.{}.attention.q.weight", Transpose()),
    ("model.layers.{}.attention.wk.weight", "layers.{}.attention.k.weight", Transpose()),
    ("model.layers.{}.attention.wv.weight", "layers.{}.attention.v.weight", Transpose()),
    ("model.layers.{}.attention.wo.weight", "layers.{}.attention.out.weight", Transpose()),
    ("model.layers.{}.ffn_norm.weight", "layers.{}.mlp_norm.weight"),
    ("model.layers.{}.feed_forward.w1.weight", "layers.{}.mlp.gate.weight", Transpose()),
    ("model.layers.{}.feed_forward.w3.weight", "layers.{}.mlp.up.weight", Transpose()),
    ("model.layers.{}.feed_forward.w2.weight", "layers.{}.mlp.down.weight", Transpose()),
    ("model.norm_out.weight", "norm.weight"),
    ("lm_head.weight", "head.weight", Transpose()),
]

TABLES = {
    "hf": Table(
        _HF,
        shapes,
        name="hf",
        # Angles, and linear biases, that some published files hold.
        ignore=[
            r"model\.layers\.\d+\.self_attn\.rotary_emb\..*",
            r"model\.future_mask|model\.alibi_mask",
        ],
        published={
            "baichuan2_7b": "baichuan-inc/Baichuan2-7B-Base",
            "baichuan2_13b": "baichuan-inc/Baichuan2-13B-Base",
        },
    ),
    "mindformers": Table(_MINDFORMERS, shapes, name="mindformers", ignore=TRAINING_STATE),
}
