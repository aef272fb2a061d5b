"""Checkpoints of ours, made without MindSpore, and what `convert --format hf` makes of them."""

from __future__ import annotations

import numpy as np

from lm_baichuan2 import SPEC as BAICHUAN2
from lm_core.checkpoint import io
from lm_core.checkpoint.layout import Memory
from lm_core.checkpoint.source import table_of
from lm_core.cli import main
from lm_core.testing import tiny
from lm_core.tokenizer.bpe import train_bpe
from lm_glm2 import SPEC as GLM2
from lm_gpt2 import SPEC as GPT2
from lm_gpt2.tokenizer import Gpt2Tokenizer
from lm_llama import SPEC as LLAMA
from lm_pangualpha import SPEC as PANGUALPHA

SPECS = {spec.name: spec for spec in (GPT2, LLAMA, GLM2, BAICHUAN2, PANGUALPHA)}
SYMBOLS = ["<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
TEXTS = [
    "The red fox sees three stones.", " two  spaces", "", " ", "\n", "a\n\n  b\t c ", "   x = 1\n",
    "na\xefve caf\xe9", "e\u0301", "\u4f60\u597d\uff0c\u4e16\u754c", "\U0001f600", "\u2581x",
    "12345 don't I'LL", "<PRE> a <MID>", "x" * 100,
]  # fmt: skip


def vocabulary(name, folder, **settings):
    """A small tokenizer of the family, its files in `folder`; ids are below the models' rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "gpt2":
        tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(200)], 500), **settings)
        tokenizer.save_pretrained(folder)
        return tokenizer
    pangu = name == "pangualpha"
    trained = {"user_defined_symbols": SYMBOLS} if pangu else {}
    model = tiny.sentencepiece_model(infill=settings.pop("infill", False), **trained)
    (folder / ("vocab.model" if pangu else "tokenizer.model")).write_bytes(model)
    tokenizer = type(SPECS[name].tokenizer(folder))(model, **settings)
    tokenizer.save_pretrained(folder)
    return tokenizer


def native(folder, name, **changes):
    """A checkpoint of the tiny preset with random weights."""
    spec = SPECS[name]
    config = tiny.config(spec, **{**({"vocab_size": 600} if name == "gpt2" else {}), **changes})
    rng, arrays = np.random.default_rng(1), {}
    for parameter, shape in table_of(spec, "native").shapes(config).items():
        middle = 1.0 if "norm" in parameter and parameter.endswith("weight") else 0.0
        arrays[parameter] = rng.normal(middle, 0.1, shape).astype(np.float32)
    io.save_native(folder, spec.name, config, Memory(arrays))
    return config


def convert(name, source, target, *flags):
    words = ["convert", name, "--input", source, "--output", target, "--format", "hf", *flags]
    assert main([str(word) for word in words]) == 0
    return target
