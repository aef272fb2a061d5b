"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conversion import ALLOWED
from models import MODELS


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: what is measured.
        unit: of the numbers.
        measure: name of the method of Bench.
        arguments: for it.
        higher: whether more is better; else a ratio below 1 is good. None: one near 1 is.
        targets: what the ratio to a peer must reach; for None how far it may be off, both ways.
        least_share: of the read bandwidth, that we must reach.
    """

    title: str
    unit: str
    measure: str
    arguments: dict[str, Any]
    higher: bool | None = True
    targets: tuple[tuple[str, float], ...] = ()
    least_share: float | None = None


def _planned(
    title: str, batch: int, accumulation: int = 1, recompute: bool = False, **sizes: Any
) -> Row:
    """A run whose peak memory `lm plan` foretells."""
    run = {
        "model": {"model_config": sizes},
        "runner_config": {
            "batch_size": batch, "gradient_accumulation_steps": accumulation, "epochs": 1
        },
        "recompute_config": {"recompute": recompute},
    }  # fmt: skip
    return Row(
        f"plan: peak memory of training, {title}", "GB", "planned", {"run": run},
        higher=None, targets=(("lm plan", 1.2),),
    )  # fmt: skip


def _converted(layout: str) -> Row:
    """A checkpoint with the two largest tensors of 13B, and a block of it."""
    arguments = {"preset": "baichuan2_13b", "layers": 1, "layout": layout}
    return Row(
        f"Baichuan2 13B with one block, published shards of 3.2 GB to {layout}: peak memory", "GB",
        "conversion", arguments, higher=False, targets=((ALLOWED, 1.0),),
    )  # fmt: skip


def _prepared(dataset: str, what: str) -> Row:
    """Real files to records of PanGu-alpha, with one process and with two."""
    arguments = {"dataset": dataset}
    return Row(f"preprocess {dataset}, {what}", "tokens/s", "preparation", arguments)


_GPT2 = {"model": "gpt2", "batch": 4, "length": 256}


def _served(clients: int) -> Row:
    """Clients of the server that ask at the same time, for as many tokens."""
    arguments = {"model": "gpt2", "clients": clients, "prompt": 32, "new": 64}
    who = "client" if clients == 1 else "clients at once"
    return Row(
        f"server, {clients} {who}, 64 tokens after 32 each, against generate", "tokens/s",
        "serving", arguments, targets=(("lm, generate", 0.8),),
    )  # fmt: skip


def _exported(model: str) -> Row:
    """Graphs in files against the model that they were made of."""
    return Row(
        f"{MODELS[model].title}: exported graphs (MindIR) of fixed sizes, batch 1: 64 tokens after "
        f"32, against generate", "tokens/s", "exported", {"model": model, "prompt": 32, "new": 64},
    )  # fmt: skip


def _family(model: str, least_share: float | None = None) -> dict[str, Row]:
    """What is measured of every model but GPT-2."""
    own, steps = MODELS[model], {"model": model, "batch": 2, "length": 256}
    title = f"{own.title} (peers: {own.note})" if own.note else own.title

    def answers(what: str, batch: int, prompt: int, new: int, **options: Any) -> Row:
        arguments = {"model": model, "batch": batch, "prompt": prompt, "new": new}
        return Row(f"{title}: {what}", "tokens/s", "generation", arguments, **options)

    return {
        f"{model}_decode1": answers(
            "decode, batch 1: 64 tokens after 32", 1, 32, 64,
            targets=(("transformers", 1.6),), least_share=least_share,
        ),
        f"{model}_decode8": answers("decode, batch 8: 64 tokens after 32", 8, 32, 64),
        f"{model}_prefill": answers(
            "prefill, 256 tokens to the first new one", 1, 256, 1, targets=(("transformers", 1.7),)
        ),
        f"{model}_train": Row(
            f"{title}: training step, 2 x 256 tokens, AdamW, clipping", "tokens/s", "training",
            steps, targets=(("transformers, plain", 1.4), ("transformers, fused", 1.4)),
        ),
        f"{model}_train_memory": Row(
            f"{title}: peak memory of training, 2 x 256 tokens", "GB", "training_memory", steps,
            higher=False, targets=(("transformers, plain", 1.2), ("transformers, fused", 1.2)),
        ),
    }  # fmt: skip


def _blocks(length: int, trains: bool) -> dict[str, Row]:
    """Memory and speed of attention that goes block by block."""
    arguments = {"model": "llama_long", "length": length, "trains": trains}
    kind = "training" if trains else "forward"
    what = f"Llama of 2 x 256 with attention in blocks, {kind}, {length:,} tokens"
    name = f"llama_blocks_{kind}_{length // 1024}k"
    return {
        f"{name}_memory": Row(
            f"{what}: peak memory above the model's", "GB", "blocks_memory", arguments, higher=False
        ),
        name: Row(what, "tokens/s", "blocks", arguments),
    }


ROWS = {
    "decode1": Row(
        "decode, batch 1: 64 tokens after 32", "tokens/s", "generation",
        {"model": "gpt2", "batch": 1, "prompt": 32, "new": 64}, targets=(("transformers", 1.6),),
    ),
    "decode8": Row(
        "decode, batch 8: 64 tokens after 32", "tokens/s", "generation",
        {"model": "gpt2", "batch": 8, "prompt": 32, "new": 64}, targets=(("transformers", 1.2),),
    ),
    "serve1": _served(1), "serve8": _served(8), "serve32": _served(32),
    "prefill": Row(
        "prefill, 512 tokens to the first new one", "tokens/s", "generation",
        {"model": "gpt2", "batch": 1, "prompt": 512, "new": 1}, targets=(("transformers", 1.4),),
    ),
    "train": Row(
        "training step, 4 x 256 tokens, AdamW, clipping", "tokens/s", "training", _GPT2,
        targets=(("transformers, plain", 1.4), ("transformers, fused", 1.4)),
    ),
    "train_memory": Row(
        "peak memory of training, 4 x 256 tokens", "GB", "training_memory", _GPT2,
        higher=False, targets=(("transformers, plain", 1.2), ("transformers, fused", 1.2)),
    ),
    "lora": Row(
        "LoRA step (rank 64 on q and v), 4 x 256 tokens, against our full step", "tokens/s",
        "lora", _GPT2, targets=(("lm, full", 1.3),),
    ),
    "lora_memory": Row(
        "peak memory of LoRA, 4 x 256 tokens, against our full training", "GB", "lora_memory",
        _GPT2, higher=False, targets=(("lm, full", 0.5),),
    ),
    "decode_memory": Row(
        "peak memory of decoding, batch 1", "GB", "decode_memory", {"model": "gpt2"}, higher=False
    ),
    "first_token": Row(
        "start of the process to the first token, prompt of 32", "s", "first_token",
        {"model": "gpt2"}, higher=False,
    ),
    "warm_first_token": Row(
        "prompt of 32 to the first token, model loaded", "tokens/s", "generation",
        {"model": "gpt2", "batch": 1, "prompt": 32, "new": 1},
    ),
    "help": Row("start of the process to --help", "s", "help", {}, higher=False),
    "preprocess": Row(
        "text to records on one process, against our training", "tokens/s", "preprocessing", _GPT2,
        targets=(("lm, training", 20.0),),
    ),
    "prepare_pretrain": _prepared("pretrain", "headlines of TNEWS in 8 files"),
    "prepare_tnews": _prepared("tnews", "the training file"),
    "prepare_cmrc2018": _prepared("cmrc2018", "the dev file"),
    "plan_gpt2": _planned("124M, 4 x 256", 4, preset="gpt2", seq_length=256),
    "plan_deep": _planned(
        "24 layers of 128, 8 x 128", 8, preset="gpt2_tiny", vocab_size=8192,
        hidden_size=128, num_layers=24, seq_length=128,
    ),
    "plan_long": _planned(
        "6 layers of 384, 1,000 words, 2 x 1024", 2, preset="gpt2_tiny", vocab_size=1000,
        hidden_size=384, num_layers=6, num_heads=6, seq_length=1024,
    ),
    "plan_accumulated": _planned(
        "6 layers of 512, 4 times 8 x 128", 8, 4, preset="gpt2_tiny", vocab_size=16000,
        hidden_size=512, num_layers=6, num_heads=8, seq_length=128,
    ),
    "plan_recomputed": _planned(
        "8 layers of 512, 8 x 256, recomputed", 8, recompute=True, preset="gpt2_tiny",
        vocab_size=16000, hidden_size=512, num_layers=8, num_heads=8, seq_length=256,
    ),
    "plan_llama": _planned(
        "Llama, 12 layers of 768 with 4 heads of keys, 4 x 256", 4, preset="llama_tiny",
        vocab_size=32000, hidden_size=768, num_layers=12, num_heads=12, n_kv_heads=4,
        intermediate_size=2048, seq_length=256,
    ),
    "plan_llama_blocks": _planned(
        "Llama, 6 layers of 512, attention in blocks, 2 x 2048", 2, preset="llama_tiny",
        vocab_size=1000, hidden_size=512, num_layers=6, num_heads=8, n_kv_heads=8,
        intermediate_size=1408, seq_length=2048, use_flash_attention=True,
    ),
    "plan_llama_recomputed": _planned(
        "Llama, 4 layers of 512, 32 x 128, recomputed", 32, recompute=True, preset="llama_tiny",
        vocab_size=1000, hidden_size=512, num_layers=4, num_heads=8, n_kv_heads=8,
        intermediate_size=1408, seq_length=128,
    ),
    "plan_glm2": _planned(
        "ChatGLM2, 8 layers of 512 with 2 heads of keys, 4 x 256", 4, preset="glm2_tiny",
        vocab_size=16000, hidden_size=512, num_layers=8, num_heads=8, kv_channels=64,
        intermediate_size=1712, seq_length=256,
    ),
    "plan_baichuan2": _planned(
        "Baichuan2 with linear biases, 8 layers of 512, 4 x 256", 4, preset="baichuan2_tiny_alibi",
        vocab_size=16000, hidden_size=512, num_layers=8, num_heads=8, intermediate_size=1408,
        seq_length=256,
    ),
    "plan_baichuan2_words": _planned(
        "Baichuan2, 2 layers of 256, 32,000 words, 8 x 256", 8, preset="baichuan2_tiny",
        vocab_size=32000, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=704,
        seq_length=256,
    ),
    "convert_native": _converted("native"),
    "convert_mindformers": _converted("mindformers"),
    "tp2_step": Row(
        "training step of 17M, 8 x 128 tokens, layers over two processes", "s", "several",
        {"degrees": {"model_parallel": 2}}, higher=False,
    ),
    "dp2_step": Row(
        "training step of 17M, 8 x 128 tokens, records over two processes", "s", "several",
        {"degrees": {"data_parallel": 2}}, higher=False,
    ),
    "llama_forward": Row(
        "Llama 168M: forward pass, 256 tokens to the logits of all", "tokens/s", "forward",
        {"model": "llama", "batch": 1, "length": 256}, targets=(("transformers", 1.7),),
    ),
    **_family("llama", least_share=0.85),
    **_family("glm2"), **_family("baichuan2"), **_family("pangualpha"),
    "gpt2_graphs": _exported("gpt2"), "llama_graphs": _exported("llama"),
    **_blocks(2048, trains=False), **_blocks(8192, trains=False), **_blocks(16384, trains=False),
    **_blocks(2048, trains=True), **_blocks(8192, trains=True), **_blocks(16384, trains=True),
}  # fmt: skip
