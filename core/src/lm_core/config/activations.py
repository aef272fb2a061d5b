"""Names of activation functions in run files, and in config.json of Hugging Face."""

from __future__ import annotations

from typing import Annotated

from lm_core.config.section import OneOf

HiddenAct = Annotated[
    str,
    OneOf(
        {
            # The run files of the cards say "gelu" for the tanh form that OpenAI trained with.
            "gelu_tanh": ("gelu", "gelu_new", "gelu_pytorch_tanh"),
            "gelu_exact": ("gelu_erf",),
            "fast_gelu": ("quick_gelu",),
            "relu": (),
            "silu": ("swish",),
        }
    ),
]

HF_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_exact",
    "quick_gelu": "fast_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What Hugging Face calls them -> our name. There "gelu" is the exact one."""

TO_HF = {ours: theirs for theirs, ours in reversed(HF_ACTIVATIONS.items())}
"""Our name -> the first of theirs."""
