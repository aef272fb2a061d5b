"""The same random GPT-2 for everybody: a Hugging Face directory, and a GGUF file beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SIZES = {"layers": 12, "hidden": 768, "heads": 12, "vocabulary": 50257, "positions": 1024}


def make(folder: Path, sizes: dict[str, int] = SIZES, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes config.json and model.safetensors; returns the tensors by their published names."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    hidden = sizes["hidden"]

    def draw(*shape: int) -> np.ndarray:
        return 0.05 * rng.standard_normal(shape, dtype=np.float32)

    tensors = {
        "wte.weight": draw(sizes["vocabulary"], hidden),
        "wpe.weight": draw(sizes["positions"], hidden),
        "ln_f.weight": 1 + draw(hidden),
        "ln_f.bias": draw(hidden),
    }
    for n in range(sizes["layers"]):
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            tensors[f"h.{n}.{name}.weight"] = draw(inputs, outputs)
            tensors[f"h.{n}.{name}.bias"] = draw(outputs)
        for name in ("ln_1", "ln_2"):
            tensors[f"h.{n}.{name}.weight"] = 1 + draw(hidden)
            tensors[f"h.{n}.{name}.bias"] = draw(hidden)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": sizes["vocabulary"], "n_positions": sizes["positions"], "n_embd": hidden,
        "n_layer": sizes["layers"], "n_head": sizes["heads"], "layer_norm_epsilon": 1e-5,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


GGUF_NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def make_gguf(folder: Path, tensors: dict[str, np.ndarray], sizes: dict[str, int] = SIZES) -> None:
    """Writes model.gguf, the same numbers for llama.cpp."""
    import gguf

    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_context_length(sizes["positions"])
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(4 * sizes["hidden"])
    writer.add_block_count(sizes["layers"])
    writer.add_head_count(sizes["heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(sizes["vocabulary"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    for name, array in tensors.items():
        stem, kind = name.rsplit(".", 1)
        parts = stem.split(".", 2)
        block = f"blk.{parts[1]}." if parts[0] == "h" else ""
        theirs = GGUF_NAMES[parts[2] if block else stem]
        # Linear weights are [in, out] with us and [out, in] there.
        turned = block and kind == "weight" and array.ndim == 2
        writer.add_tensor(
            f"{block}{theirs}.{kind}", np.ascontiguousarray(array.T) if turned else array
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
