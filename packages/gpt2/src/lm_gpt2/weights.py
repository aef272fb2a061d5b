"""What others call GPT-2's weights.

Our linear weights are stored [in, out], and so is an embedding that is the output head too. The
linear weights of OpenAI and Hugging Face (their "Conv1D") are so as well, with query, key and value
side by side in one matrix. MindFormers keeps the three apart and stores them [out, in], but its
other two kinds of weight [in, out].
"""

from __future__ import annotations

from lm_core.checkpoint.layout import Split, Table, Tie, Transpose
from lm_core.checkpoint.layout.mindformers import TRAINING_STATE
from lm_core.checkpoint.layout.shapes import norm, plain_block
from lm_core.checkpoint.layout.tensors import Shape
from lm_gpt2.config import Gpt2Config


def shapes(config: Gpt2Config) -> dict[str, Shape]:
    """All parameters of the network under our own names."""
    hidden, inner = config.hidden_size, config.expand_ratio * config.hidden_size
    found: dict[str, Shape] = {
        "embedding.weight": (hidden, config.vocab_size)
        if _tied(config)
        else (config.vocab_size, hidden),
        "position_embedding.weight": (config.positions, hidden),
    }
    for layer in range(config.num_layers):
        found |= plain_block(layer, hidden, inner)
    found |= norm("norm", hidden)
    if config.is_classifier:
        found["score.weight"] = (hidden, config.num_labels)
    elif not config.tie_word_embeddings:
        found["head.weight"] = (hidden, config.vocab_size)
    return found


def _tied(config: Gpt2Config) -> bool:
    return config.tie_word_embeddings


_QKV_WEIGHT = tuple(f"layers.{{}}.attention.{name}.weight" for name in "qkv")
_QKV_BIAS = tuple(f"layers.{{}}.attention.{name}.bias" for name in "qkv")

_HF = [
    ("transformer.wte.weight", "embedding.weight", Transpose(_tied)),
    ("transformer.wpe.weight", "position_embedding.weight"),
    ("transformer.h.{}.ln_1.weight", "layers.{}.attention_norm.weight"),
    ("transformer.h.{}.ln_1.bias", "layers.{}.attention_norm.bias"),
    ("transformer.h.{}.attn.c_attn.weight", _QKV_WEIGHT, Split(3, axis=1)),
    ("transformer.h.{}.attn.c_attn.bias", _QKV_BIAS, Split(3)),
    ("transformer.h.{}.attn.c_proj.weight", "layers.{}.attention.out.weight"),
    ("transformer.h.{}.attn.c_proj.bias", "layers.{}.attention.out.bias"),
    ("transformer.h.{}.ln_2.weight", "layers.{}.mlp_norm.weight"),
    ("transformer.h.{}.ln_2.bias", "layers.{}.mlp_norm.bias"),
    ("transformer.h.{}.mlp.c_fc.weight", "layers.{}.mlp.up.weight"),
    ("transformer.h.{}.mlp.c_fc.bias", "layers.{}.mlp.up.bias"),
    ("transformer.h.{}.mlp.c_proj.weight", "layers.{}.mlp.down.weight"),
    ("transformer.h.{}.mlp.c_proj.bias", "layers.{}.mlp.down.bias"),
    ("transformer.ln_f.weight", "norm.weight"),
    ("transformer.ln_f.bias", "norm.bias"),
    ("lm_head.weight", "head.weight", Tie("embedding.weight"), Transpose()),
    ("score.weight", "score.weight", Transpose()),
]

_MINDFORMERS = [
    ("backbone.embedding.word_embedding.embedding_table", "embedding.weight", Transpose(_tied)),
    ("backbone.embedding.position_embedding.embedding_table", "position_embedding.weight"),
    ("backbone.blocks.{}.layernorm1.gamma", "layers.{}.attention_norm.weight"),
    ("backbone.blocks.{}.layernorm1.beta", "layers.{}.attention_norm.bias"),
    ("backbone.blocks.{}.attention.dense1.weight", "layers.{}.attention.q.weight", Transpose()),
    ("backbone.blocks.{}.attention.dense1.bias", "layers.{}.attention.q.bias"),
    ("backbone.blocks.{}.attention.dense2.weight", "layers.{}.attention.k.weight", Transpose()),
    ("backbone.blocks.{}.attention.dense2.bias", "layers.{}.attention.k.bias"),
    ("backbone.blocks.{}.attention.dense3.weight", "layers.{}.attention.v.weight", Transpose()),
    ("backbone.blocks.{}.attention.dense3.bias", "layers.{}.attention.v.bias"),
    ("backbone.blocks.{}.attention.projection.weight", "layers.{}.attention.out.weight"),
    ("backbone.blocks.{}.attention.projection.bias", "layers.{}.attention.out.bias"),
    ("backbone.blocks.{}.layernorm2.gamma", "layers.{}.mlp_norm.weight"),
    ("backbone.blocks.{}.layernorm2.beta", "layers.{}.mlp_norm.bias"),
    ("backbone.blocks.{}.output.mapping.weight", "layers.{}.mlp.up.weight"),
    ("backbone.blocks.{}.output.mapping.bias", "layers.{}.mlp.up.bias"),
    ("backbone.blocks.{}.output.projection.weight", "layers.{}.mlp.down.weight"),
    ("backbone.blocks.{}.output.projection.bias", "layers.{}.mlp.down.bias"),
    ("backbone.layernorm.gamma", "norm.weight"),
    ("backbone.layernorm.beta", "norm.bias"),
    ("score.weight", "score.weight", Transpose()),
]

TABLES = {
    "hf": Table(
        _HF,
        shapes,
        name="hf",
        # Causal masks that older versions of transformers stored with the weights.
        ignore=[r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"],
        prefix="transformer.",
        published={
            "gpt2": "openai-community/gpt2",
            "gpt2_medium": "openai-community/gpt2-medium",
            "gpt2_large": "openai-community/gpt2-large",
            "gpt2_xl": "openai-community/gpt2-xl",
            "gpt2_13b": "cerebras/Cerebras-GPT-13B",
        },
    ),
    "mindformers": Table(
        _MINDFORMERS,
        shapes,
        name="mindformers",
        ignore=TRAINING_STATE,
    ),
}
