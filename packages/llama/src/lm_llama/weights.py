"""What others call Llama's weights.

Linear weights are stored [out, in] everywhere but here. Hugging Face and MindFormers hold the rows
of queries and keys so that the halves of a head rotate against each other, as ours; Meta's own
files pair neighbours, and are split over files by tensor parallelism.
"""

from __future__ import annotations

from operator import attrgetter

from lm_core.checkpoint.layout import PermuteRope, Table, Tie, Transpose
from lm_core.checkpoint.layout.mindformers import TRAINING_STATE
from lm_core.checkpoint.layout.shapes import gated_block
from lm_core.checkpoint.layout.tensors import Shape
from lm_llama.config import LlamaConfig
from lm_llama.meta import RELEASE


def shapes(config: LlamaConfig) -> dict[str, Shape]:
    """All parameters of the network under our own names."""
    hidden, inner, tied = config.hidden_size, config.ffn_size, config.tie_word_embeddings
    keys = config.kv_heads * config.head_dim
    table = (hidden, config.vocab_size) if tied else (config.vocab_size, hidden)
    found: dict[str, Shape] = {"embedding.weight": table}
    for layer in range(config.num_layers):
        found |= gated_block(layer, hidden, inner, keys=keys, qkv_bias=config.qkv_has_bias)
    found["norm.weight"] = (hidden,)
    if config.is_classifier:
        found["score.weight"] = (hidden, config.num_labels)
    elif not tied:
        found["head.weight"] = (hidden, config.vocab_size)
    return found


_tied, _head_dim = attrgetter("tie_word_embeddings"), attrgetter("head_dim")

_HF = [
    ("model.embed_tokens.weight", "embedding.weight", Transpose(_tied)),
    ("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight"),
    ("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attention.q.weight", Transpose()),
    ("model.layers.{}.self_attn.k_proj.weight", "layers.{}.attention.k.weight", Transpose()),
    ("model.layers.{}.self_attn.v_proj.weight", "layers.{}.attention.v.weight", Transpose()),
    ("model.layers.{}.self_attn.q_proj.bias", "layers.{}.attention.q.bias"),
    ("model.layers.{}.self_attn.k_proj.bias", "layers.{}.attention.k.bias"),
    ("model.layers.{}.self_attn.v_proj.bias", "layers.{}.attention.v.bias"),
    ("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.out.weight", Transpose()),
    ("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    ("model.layers.{}.mlp.gate_proj.weight", "layers.{}.mlp.gate.weight", Transpose()),
    ("model.layers.{}.mlp.up_proj.weight", "layers.{}.mlp.up.weight", Transpose()),
    ("model.layers.{}.mlp.down_proj.weight", "layers.{}.mlp.down.weight", Transpose()),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "head.weight", Tie("embedding.weight"), Transpose()),
    ("score.weight", "score.weight", Transpose()),
]


def _named_by_meta(prefix: str, table: str, last_norm: str, head: str, *rope: PermuteRope) -> list:
    """MindFormers kept Meta's names for what is in a block."""
    block, ours = f"{prefix}layers.{{}}.", "layers.{}."
    return [
        (prefix + table, "embedding.weight", Transpose(_tied)),
        (f"{block}attention_norm.weight", f"{ours}attention_norm.weight"),
        (f"{block}attention.wq.weight", f"{ours}attention.q.weight", *rope, Transpose()),
        (f"{block}attention.wk.weight", f"{ours}attention.k.weight", *rope, Transpose()),
        (f"{block}attention.wv.weight", f"{ours}attention.v.weight", Transpose()),
        (f"{block}attention.wq.bias", f"{ours}attention.q.bias", *rope),
        (f"{block}attention.wk.bias", f"{ours}attention.k.bias", *rope),
        (f"{block}attention.wv.bias", f"{ours}attention.v.bias"),
        (f"{block}attention.wo.weight", f"{ours}attention.out.weight", Transpose()),
        (f"{block}ffn_norm.weight", f"{ours}mlp_norm.weight"),
        (f"{block}feed_forward.w1.weight", f"{ours}mlp.gate.weight", Transpose()),
        (f"{block}feed_forward.w3.weight", f"{ours}mlp.up.weight", Transpose()),
        (f"{block}feed_forward.w2.weight", f"{ours}mlp.down.weight", Transpose()),
        (prefix + last_norm, "norm.weight"),
        (head, "head.weight", Tie("embedding.weight"), Transpose()),
        ("score.weight", "score.weight", Transpose()),
    ]


TABLES = {
    "hf": Table(
        _HF,
        shapes,
        name="hf",
        # Angles that older versions of transformers stored with the weights.
        ignore=[r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"],
        prefix="model.",
        published={
            **{f"llama_{size}b": f"huggyllama/llama-{size}b" for size in (7, 13, 30, 65)},
            **{f"llama2_{size}b": f"meta-llama/Llama-2-{size}b-hf" for size in (7, 13, 70)},
            **{
                f"codellama_{size}b{ours}": f"codellama/CodeLlama-{size}b{theirs}-hf"
                for size in (7, 13, 34)
                for ours, theirs in {"": "", "_instruct": "-Instruct", "_python": "-Python"}.items()
            },
        },
    ),
    "mindformers": Table(
        _named_by_meta(
            "model.", "tok_embeddings.embedding_weight", "norm_out.weight", "lm_head.weight"
        ),
        shapes,
        name="mindformers",
        ignore=TRAINING_STATE,
    ),
    "meta": Table(
        _named_by_meta(
            "", "tok_embeddings.weight", "norm.weight", "output.weight", PermuteRope(_head_dim)
        ),
        shapes,
        name="meta",
        ignore=[r"rope\.freqs"],
        release=RELEASE,
    ),
}
