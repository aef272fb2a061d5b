"""Models, token ids, texts and checkpoints that are small, real, and the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.nn.network import Network
    from lm_core.spec import ModelSpec

_SUBJECTS = (
    "the red fox",
    "a small ship",
    "our teacher",
    "the old clock",
    "this river",
    "every cook",
)
_VERBS = ("sees", "follows", "never finds", "often carries", "waits for", "counts")
_OBJECTS = (
    "three stones",
    "the morning train",
    "a quiet garden",
    "its own shadow",
    "two blue cups",
)
_PRINTABLE = "".join(map(chr, range(33, 127)))


def text(sentences: int, seed: int = 0) -> str:
    """English sentences, one a line. Few patterns, so a tiny model learns them in a few steps."""
    choose = random.Random(seed).choice
    lines = (
        f"{choose(_SUBJECTS)} {choose(_VERBS)} {choose(_OBJECTS)}.".capitalize()
        for _ in range(sentences)
    )
    return "\n".join(lines) + "\n"


def messages(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: the user's first text, its answer, and so on."""
    found = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return found + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def sentencepiece_model(vocab_size: int = 460, infill: bool = False, **trained: Any) -> bytes:
    """A sentencepiece model such as Llama's, learnt from `text` in a moment.

    It is BPE with bytes for unknown characters, and normalizes nothing. Ids 0, 1, 2 are `<unk>`,
    `<s>`, `</s>`; then come the 256 bytes.

    Args:
        vocab_size: pieces; 460 to 600.
        infill: Code Llama's tokens for infilling come behind these pieces, ordinary pieces as
            there, and so do the pieces that merge to them.
        **trained: other settings of the trainer, such as `user_defined_symbols`.
    """
    from io import BytesIO

    from sentencepiece import SentencePieceTrainer

    from lm_core.tokenizer.sentencepiece_model import with_pieces

    made = BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": vocab_size, "byte_fallback": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "split_digits": True, "character_coverage": 1.0, "num_threads": 1, "minloglevel": 2,
    }  # fmt: skip
    lines = iter([*text(400).splitlines(), *[_PRINTABLE] * 2])
    given: dict[str, Any] = {"sentence_iterator": lines, **settings, **trained}
    SentencePieceTrainer.train(model_writer=made, **given)
    spelt = [f"\N{LOWER ONE EIGHTH BLOCK}<{name}>" for name in ("PRE", "SUF", "MID", "EOT")]
    parts = dict.fromkeys(token[:end] for token in spelt for end in range(2, len(token) + 1))
    behind = [(part, -1e4 - number) for number, part in enumerate(parts)] if infill else []
    return with_pieces(made.getvalue(), behind)


def config(spec: ModelSpec, **changes: Any) -> ModelConfig:
    """The package's tiny preset, with changes."""
    return spec.presets[f"{spec.name}_tiny"].copy(changes)


def model(spec: ModelSpec, seed: int = 1, **changes: Any) -> Any:
    """A tiny model with random weights that give every layer something to do.

    Fresh weights are so small that all logits are nearly equal; here norms and biases are random.
    """
    from mindspore import Tensor

    from lm_core.nn.classifier import with_head
    from lm_core.parallel.context import ParallelContext

    built = with_head(spec.build(config(spec, **changes), ParallelContext.local()))
    generator = np.random.default_rng(seed)
    for name, parameter in built.named_parameters().items():
        values = generator.normal(0.0, 0.1, parameter.shape)
        values += 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.set_data(Tensor(values.astype(np.float32), parameter.dtype))
    built.set_train(False)
    return built


def token_ids(vocab_size: int, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Random int32 ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)


def greedy(built: Any, prompt: np.ndarray, new: int) -> list[int]:
    """The prompt and its most likely continuation, by whole forward passes, all of one shape.

    What stands behind the last token makes no difference to its logits.
    """
    from mindspore import Tensor

    built.set_train(False)
    ids = np.zeros((1, len(prompt) + new), np.int32)
    ids[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + new):
        ids[0, end] = built(Tensor(ids)).asnumpy()[0, end - 1].argmax()
    return ids[0].tolist()


def weights(built: Network) -> dict[str, np.ndarray]:
    """The parameters by our names."""
    return {name: parameter.asnumpy() for name, parameter in built.named_parameters().items()}


def write_hf(built: Network, spec: ModelSpec, directory: Path, layout: str = "hf") -> Path:
    """Writes config.json and model.safetensors as others publish them, under their names."""
    from safetensors.numpy import save_file

    from lm_core.checkpoint.layout import Memory

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(built.config.to_hf()), encoding="utf-8")
    theirs = spec.tables[layout].save(Memory(weights(built)), built.config)
    arrays = {name: np.ascontiguousarray(theirs.read(name)) for name in theirs.specs}
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
