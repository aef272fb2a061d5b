"""The same random model for everybody: a Hugging Face directory, and a GGUF file beside it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Shape = tuple[int, ...]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model(ABC):
    """A model with its sizes, as its publisher names and stores the weights.

    Attributes:
        title: what tables call it.
        layers: blocks.
        hidden: H.
        heads: N, and as many of keys and values.
        inner: F.
        vocabulary: V.
        positions: the longest sequence.
    """

    title: str
    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    positions: int

    architecture: ClassVar[str]
    """How GGUF calls it."""
    looked_up: ClassVar[str]
    """The table of which a decoding step reads no more than a row."""
    gguf_names: ClassVar[dict[str, str]]
    """Their name of a tensor, without block and kind -> that of GGUF."""

    @property
    def weight_bytes(self) -> int:
        """What a decoding step reads."""
        return 4 * sum(prod(s) for name, s in self.shapes().items() if name != self.looked_up)

    @abstractmethod
    def shapes(self) -> dict[str, Shape]:
        """All tensors of model.safetensors."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""

    @abstractmethod
    def settings(self, writer: Any) -> None:
        """Hands what only this architecture has to a GGUFWriter."""

    @abstractmethod
    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        """Name and contents of a tensor in a GGUF file."""

    def make(self, folder: Path, seed: int = 0) -> Tensors:
        """Writes config.json and model.safetensors; returns the tensors by their names."""
        from safetensors.numpy import save_file

        rng = np.random.default_rng(seed)
        tensors = {name: _draw(rng, name, shape) for name, shape in self.shapes().items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return tensors

    def make_gguf(self, folder: Path, tensors: Tensors) -> None:
        """Writes model.gguf, the same numbers for llama.cpp."""
        import gguf

        writer = gguf.GGUFWriter(folder / "model.gguf", self.architecture)
        writer.add_context_length(self.positions)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.inner)
        writer.add_block_count(self.layers)
        writer.add_head_count(self.heads)
        writer.add_vocab_size(self.vocabulary)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_tokenizer_model("no_vocab")
        self.settings(writer)
        for name, array in tensors.items():
            theirs, values = self.for_gguf(name, array)
            writer.add_tensor(theirs, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _draw(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    """Norms are around 1, all else around 0."""
    is_norm = len(shape) == 1 and name.endswith("weight")
    drawn = 0.05 * rng.standard_normal(shape, dtype=np.float32)
    return 1 + drawn if is_norm else drawn


class Gpt2(Model):
    """GPT-2: linear weights are [in, out], the head is the table."""

    architecture = "gpt2"
    looked_up = "wpe.weight"
    gguf_names = {
        "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip

    def shapes(self) -> dict[str, Shape]:
        hidden, inner = self.hidden, self.inner
        found: dict[str, Shape] = {
            "wte.weight": (self.vocabulary, hidden),
            "wpe.weight": (self.positions, hidden),
            "ln_f.weight": (hidden,),
            "ln_f.bias": (hidden,),
        }
        for n in range(self.layers):
            for name, inputs, outputs in (
                ("attn.c_attn", hidden, 3 * hidden),
                ("attn.c_proj", hidden, hidden),
                ("mlp.c_fc", hidden, inner),
                ("mlp.c_proj", inner, hidden),
            ):
                found[f"h.{n}.{name}.weight"] = (inputs, outputs)
                found[f"h.{n}.{name}.bias"] = (outputs,)
            for name in ("ln_1", "ln_2"):
                found[f"h.{n}.{name}.weight"] = found[f"h.{n}.{name}.bias"] = (hidden,)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "activation_function": "gelu_new",
            "vocab_size": self.vocabulary, "n_positions": self.positions, "n_embd": self.hidden,
            "n_inner": self.inner, "n_layer": self.layers, "n_head": self.heads,
            "layer_norm_epsilon": 1e-5,
            "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip

    def settings(self, writer: Any) -> None:
        writer.add_layer_norm_eps(1e-5)

    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        stem, kind = name.rsplit(".", 1)
        parts = stem.split(".", 2)
        if parts[0] != "h":
            return f"{self.gguf_names[stem]}.{kind}", array
        # Linear weights are [out, in] there.
        turned = array.T if array.ndim == 2 else array
        return f"blk.{parts[1]}.{self.gguf_names[parts[2]]}.{kind}", turned


class Llama(Model):
    """Llama: linear weights are [out, in], nothing is tied."""

    architecture = "llama"
    looked_up = "model.embed_tokens.weight"
    gguf_names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip

    def shapes(self) -> dict[str, Shape]:
        hidden, inner, vocabulary = self.hidden, self.inner, self.vocabulary
        found: dict[str, Shape] = {
            "model.embed_tokens.weight": (vocabulary, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (vocabulary, hidden),
        }
        for n in range(self.layers):
            block = f"model.layers.{n}."
            for name in "qkvo":
                found[f"{block}self_attn.{name}_proj.weight"] = (hidden, hidden)
            for name in ("gate", "up"):
                found[f"{block}mlp.{name}_proj.weight"] = (inner, hidden)
            found[f"{block}mlp.down_proj.weight"] = (hidden, inner)
            for name in ("input", "post_attention"):
                found[f"{block}{name}_layernorm.weight"] = (hidden,)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "vocab_size": self.vocabulary, "max_position_embeddings": self.positions,
            "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip

    def settings(self, writer: Any) -> None:
        writer.add_head_count_kv(self.heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(self.hidden // self.heads)
        writer.add_rope_freq_base(10000.0)

    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        stem = name.removesuffix(".weight")
        if stem in self.gguf_names:
            return f"{self.gguf_names[stem]}.weight", array
        _, _, number, part = stem.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            array = self._neighbours(array)
        return f"blk.{number}.{self.gguf_names[part]}.weight", array

    def _neighbours(self, array: np.ndarray) -> np.ndarray:
        """Rows of queries or keys [N * D, H]: halves of a head are pairs here, neighbours there."""
        halves = array.reshape(self.heads, 2, -1, self.hidden)
        return halves.swapaxes(1, 2).reshape(array.shape)


MODELS: dict[str, Model] = {
    "gpt2": Gpt2("GPT-2 124M", 12, 768, 12, 3072, 50257, 1024),
    "llama": Llama("Llama 168M", 8, 1024, 16, 2816, 32000, 1024),
    "llama_long": Llama("Llama 4M", 2, 256, 4, 704, 4096, 16384),
}
