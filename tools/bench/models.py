"""The models that are measured, as their publishers name and store the weights.

Where peers lack a model they get another that computes the same, or, if there is none, one of the
same sizes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from weights import Known, Model, Shape, Tensors


class Gpt2(Known):
    """GPT-2: linear weights are [in, out], the head is the table."""

    architecture = "gpt2"
    looked_up = ("wpe.weight",)
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


class Gated(Known):
    """RMS norms and gated feed-forward layers; linear weights are [out, in], nothing is tied."""

    looked_up = ("model.embed_tokens.weight",)
    gguf_names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip

    @property
    def keys(self) -> int:
        """G, heads of keys and values."""
        return self.heads

    @property
    def turned(self) -> int:
        """Numbers of a head that rotary positions turn."""
        return self.hidden // self.heads

    @abstractmethod
    def block(self) -> dict[str, Shape]:
        """The tensors of a block but its norms and what leads out of attention and feed-forward."""

    def shapes(self) -> dict[str, Shape]:
        hidden, norm = self.hidden, (self.hidden,)
        table = (self.vocabulary, hidden)
        own = {
            **self.block(),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.down_proj.weight": (hidden, self.inner),
            "input_layernorm.weight": norm,
            "post_attention_layernorm.weight": norm,
        }
        blocks = (f"model.layers.{n}." for n in range(self.layers))
        found: dict[str, Shape] = {"model.embed_tokens.weight": table, "model.norm.weight": norm}
        found |= {block + name: shape for block in blocks for name, shape in own.items()}
        return {**found, "lm_head.weight": table}

    def config(self) -> dict[str, Any]:
        return {
            "hidden_act": "silu", "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.keys,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
            "bos_token_id": None,
        }  # fmt: skip

    def settings(self, writer: Any) -> None:
        writer.add_head_count_kv(self.keys)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(self.turned)
        writer.add_rope_freq_base(10000.0)

    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        stem, kind = name.rsplit(".", 1)
        if stem in self.gguf_names:
            return f"{self.gguf_names[stem]}.{kind}", array
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{self.gguf_names[part]}.{kind}", array


class Llama(Gated):
    """Llama."""

    architecture = "llama"

    def block(self) -> dict[str, Shape]:
        found = {f"self_attn.{name}_proj.weight": (self.hidden, self.hidden) for name in "qkv"}
        gates = {f"mlp.{name}_proj.weight": (self.inner, self.hidden) for name in ("gate", "up")}
        return {**found, **gates}

    def config(self) -> dict[str, Any]:
        own = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": None}
        return {**super().config(), **own, "attention_bias": False, "mlp_bias": False}

    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            array = self._neighbours(array)
        return super().for_gguf(name, array)

    def _neighbours(self, array: np.ndarray) -> np.ndarray:
        """Rows of queries or keys [N * D, H]: halves of a head are pairs here, neighbours there."""
        halves = array.reshape(self.heads, 2, -1, self.hidden)
        return halves.swapaxes(1, 2).reshape(array.shape)


class Glm(Gated):
    """GLM as Hugging Face has it since GLM-4: the network is that of ChatGLM2."""

    architecture = "chatglm"
    keys = 2

    @property
    def turned(self) -> int:
        """Half of each head."""
        return self.hidden // self.heads // 2

    def block(self) -> dict[str, Shape]:
        narrow = self.keys * self.hidden // self.heads
        found: dict[str, Shape] = {"mlp.gate_up_proj.weight": (2 * self.inner, self.hidden)}
        for name, outputs in (("q", self.hidden), ("k", narrow), ("v", narrow)):
            found[f"self_attn.{name}_proj.weight"] = (outputs, self.hidden)
            found[f"self_attn.{name}_proj.bias"] = (outputs,)
        return found

    def config(self) -> dict[str, Any]:
        return {
            **super().config(), "model_type": "glm", "architectures": ["GlmForCausalLM"],
            "head_dim": self.hidden // self.heads, "partial_rotary_factor": 0.5,
            "attention_bias": True, "eos_token_id": [], "pad_token_id": None,
        }  # fmt: skip


class ChatGlm2(Model):
    """ChatGLM2: queries, keys and values are one product, and so are gate and up."""

    looked_up = ("transformer.embedding.word_embeddings.weight",)
    note = "GLM"
    # Ours in a block -> theirs; queries, keys and values apart.
    _BLOCK = {
        "input_layernorm.weight": "input_layernorm.weight",
        "self_attention.dense.weight": "self_attn.o_proj.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
        "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    }
    _REST = {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    }

    def shapes(self) -> dict[str, Shape]:
        theirs, size = self.peer().shapes(), self.hidden + 2 * Glm.keys * self.hidden // self.heads
        found = {ours: theirs[name] for ours, name in self._REST.items()}
        for n in range(self.layers):
            block = f"transformer.encoder.layers.{n}."
            for ours, name in self._BLOCK.items():
                found[block + ours] = theirs[f"model.layers.{n}.{name}"]
            found[f"{block}self_attention.query_key_value.weight"] = (size, self.hidden)
            found[f"{block}self_attention.query_key_value.bias"] = (size,)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "chatglm", "architectures": ["ChatGLMModel"],
            "padded_vocab_size": self.vocabulary, "seq_length": self.positions,
            "hidden_size": self.hidden, "ffn_hidden_size": self.inner, "num_layers": self.layers,
            "num_attention_heads": self.heads, "kv_channels": self.hidden // self.heads,
            "multi_query_attention": True, "multi_query_group_num": Glm.keys,
            "add_qkv_bias": True, "layernorm_epsilon": 1e-5,
            "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip

    def peer(self) -> Glm:
        return Glm.sized_as(self)

    def for_peer(self, tensors: Tensors) -> Tensors:
        found = {name: tensors[ours] for ours, name in self._REST.items()}
        narrow = Glm.keys * self.hidden // self.heads
        for n in range(self.layers):
            block, theirs = f"transformer.encoder.layers.{n}.", f"model.layers.{n}."
            found |= {theirs + name: tensors[block + ours] for ours, name in self._BLOCK.items()}
            for kind in ("weight", "bias"):
                whole = tensors[f"{block}self_attention.query_key_value.{kind}"]
                parts = np.split(whole, [self.hidden, self.hidden + narrow])
                for name, part in zip("qkv", parts, strict=True):
                    found[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        return found


class Baichuan2(Model):
    """Baichuan 2 of the 7B kind: Llama, but the head's rows are normalized at every step."""

    looked_up = Llama.looked_up
    same_losses = 1  # the first update of a head that is normalized is another
    note = "Llama"

    def shapes(self) -> dict[str, Shape]:
        found = self.peer().shapes()
        for n in range(self.layers):
            block = f"model.layers.{n}.self_attn."
            for name in "qkv":
                del found[f"{block}{name}_proj.weight"]
            found[f"{block}W_pack.weight"] = (3 * self.hidden, self.hidden)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"],
            "hidden_act": "silu", "vocab_size": self.vocabulary, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "model_max_length": self.positions,
            "max_position_embeddings": self.positions, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False, "z_loss_weight": 0,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip

    def peer(self) -> Llama:
        return Llama.sized_as(self)

    def for_peer(self, tensors: Tensors) -> Tensors:
        found = {}
        for name, array in tensors.items():
            if name.endswith("W_pack.weight"):
                for letter, part in zip("qkv", np.split(array, 3), strict=True):
                    found[name.replace("W_pack", f"{letter}_proj")] = part
            else:
                found[name] = array
        head = tensors["lm_head.weight"]
        found["lm_head.weight"] = head / np.linalg.norm(head, axis=1, keepdims=True)
        return found


class PanguAlpha(Model):
    """PanGu-alpha in the names of its PyTorch port: linear weights are [out, in], the head is tied.

    No peer has its query layer, so they get GPT-2 of as many layers with weights of its own.
    """

    looked_up = ("transformer.wpe.weight", "transformer.wqe.weight")
    same_tokens, same_losses = False, 0
    note = "GPT-2"

    def shapes(self) -> dict[str, Shape]:
        hidden, inner = self.hidden, self.inner
        found: dict[str, Shape] = {
            "transformer.wte.weight": (self.vocabulary, hidden),
            "transformer.wpe.weight": (self.positions, hidden),
            "transformer.wqe.weight": (self.positions, hidden),
            "transformer.ln_f.weight": (hidden,),
            "transformer.ln_f.bias": (hidden,),
        }
        for n in range(self.layers):
            block = f"transformer.h.{n}."
            linear = {f"attn.{name}_proj": (hidden, hidden) for name in "qkvc"}
            linear |= {"mlp.c_fc": (inner, hidden), "mlp.c_proj": (hidden, inner)}
            for name, shape in linear.items():
                found[f"{block}{name}.weight"] = shape
                found[f"{block}{name}.bias"] = shape[:1]
            for name in ("ln_1", "ln_2"):
                found[f"{block}{name}.weight"] = found[f"{block}{name}.bias"] = (hidden,)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "gpt_pangu", "architectures": ["GPTPanguForCausalLM"],
            "activation_function": "gelu_new",
            "vocab_size": self.vocabulary, "max_position_embeddings": self.positions,
            "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_layers": self.layers, "num_heads": self.heads, "layer_norm_epsilon": 1e-5,
            "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip

    def peer(self) -> Gpt2:
        return Gpt2.sized_as(self)

    def for_peer(self, tensors: Tensors) -> Tensors:
        return self.peer().draw()


MODELS: dict[str, Model] = {
    "gpt2": Gpt2("GPT-2 124M", 12, 768, 12, 3072, 50257, 1024),
    "llama": Llama("Llama 168M", 8, 1024, 16, 2816, 32000, 1024),
    "glm2": ChatGlm2("ChatGLM2 171M", 8, 1024, 8, 3424, 32000, 1024),
    "baichuan2": Baichuan2("Baichuan2 168M", 8, 1024, 16, 2816, 32000, 1024),
    "pangualpha": PanguAlpha("PanGu-alpha 144M", 8, 1024, 16, 4096, 40000, 1024),
    "llama_long": Llama("Llama 4M", 2, 256, 4, 704, 4096, 16384),
}
