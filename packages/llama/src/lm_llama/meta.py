"""Llama as Meta publishes it: params.json beside consolidated.00.pth, consolidated.01.pth, ...

The sizes in params.json are those of Meta's `ModelArgs`. Two things are not in it: the vocabulary
is often -1 or left out, so the rows of the table count; and for how many tokens the model was
trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_core.checkpoint.layout.release import Release, Specs
from lm_core.errors import ConfigError
from lm_core.log import notice_once
from lm_llama.config import LlamaConfig

_TABLE = "tok_embeddings.weight"
# Our field -> their key and the value that Meta's code takes where it is missing.
_FIELDS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("dim", None),
    "num_layers": ("n_layers", None),
    "num_heads": ("n_heads", None),
    "n_kv_heads": ("n_kv_heads", None),
    "multiple_of": ("multiple_of", 256),
    "ffn_dim_multiplier": ("ffn_dim_multiplier", None),
    "rms_norm_eps": ("norm_eps", 1e-5),
    "theta": ("rope_theta", 10000.0),
}
_REQUIRED = ("dim", "n_layers", "n_heads")
# Settings of Meta's program for running the model; max_seq_len is read where it is there.
_OF_A_RUN = ("vocab_size", "max_seq_len", "max_batch_size")


def axis(name: str, specs: Specs) -> int | None:
    """Along which axis a file of Meta's holds a slice of a matrix [out, in]; None: no slice.

    Llama 1 and 2 cut the table of tokens along H, later releases along V.
    """
    shape = specs[name].shape
    if len(shape) != 2:
        return None
    if name == _TABLE:
        return int("norm.weight" in specs and shape[1] != specs["norm.weight"].shape[0])
    return int(name.endswith((".attention.wo.weight", ".feed_forward.w2.weight")))


def read(values: Mapping[str, Any], specs: Specs) -> LlamaConfig:
    """The configuration that params.json and the shapes of the weights describe.

    Raises:
        ConfigError: keys that are missing, wrong, or change the network in an unknown way.
    """
    known = {*_OF_A_RUN, *(key for key, _ in _FIELDS.values())}
    found = [
        f"{key}: is {value!r}; Llama is not built for that; use another checkpoint"
        for key, value in values.items()
        if key not in known and value not in (None, False)
    ]
    found += [
        f"{key}: is missing; must be there; copy the file again"
        for key in _REQUIRED
        if key not in values
    ]
    if found:
        raise ConfigError(*found)
    fields = {ours: values.get(key, start) for ours, (key, start) in _FIELDS.items()}
    if values.get("vocab_size", -1) != -1:
        fields["vocab_size"] = values["vocab_size"]
    elif _TABLE in specs:
        fields["vocab_size"] = specs[_TABLE].shape[0]
    config = LlamaConfig.parse(fields)
    inner = _inner(config.hidden_size, config.multiple_of, config.ffn_dim_multiplier)
    length = values.get("max_seq_len") or _trained_length(config)
    return config.copy(intermediate_size=inner, seq_length=length)


def write(config: LlamaConfig) -> dict[str, Any]:
    """The contents of params.json.

    Raises:
        ConfigError: a network that Meta's code does not compute.
    """
    other = [key for key in ("qkv_has_bias", "tie_word_embeddings") if getattr(config, key)]
    other += ["rope_scaling"] * (config.rope.type != "default") + ["task"] * config.is_classifier
    if other:
        cannot = "which params.json cannot say; use another layout"
        raise ConfigError(*(f"{key}: is {getattr(config, key)!r}, {cannot}" for key in other))
    values = {key: getattr(config, ours) for ours, (key, _) in _FIELDS.items()}
    values |= {"vocab_size": config.vocab_size, **_feed_forward(config)}
    # The code of the first Llama knows neither key.
    usual = {"rope_theta": _FIELDS["theta"][1], "n_kv_heads": config.num_heads}
    return {k: value for k, value in values.items() if value not in (None, usual.get(k))}


def _trained_length(config: LlamaConfig) -> int:
    """Code Llama is known by its base of the angles, Llama 2 70B by its grouped heads."""
    if config.theta > 10000.0 or config.kv_heads != config.num_heads:
        return 16384 if config.theta > 10000.0 else 4096
    notice_once(
        "length of a Llama",
        "params.json: does not say for how many tokens the model was trained; 2048 is taken, as "
        "of the first Llama; set seq_length: 4096 for Llama 2",
    )
    return 2048


def _inner(hidden: int, multiple_of: int, multiplier: float | None) -> int:
    """F as Meta's code counts it."""
    inner = int(2 * (4 * hidden) / 3)
    inner = inner if multiplier is None else int(multiplier * inner)
    return -(-inner // multiple_of) * multiple_of


def _feed_forward(config: LlamaConfig) -> dict[str, Any]:
    """Settings of which Meta's code makes this model's F."""
    hidden, inner = config.hidden_size, config.ffn_size
    for multiplier in (None, config.ffn_dim_multiplier):
        for multiple in (config.multiple_of, *(2**power for power in range(12, -1, -1))):
            if _inner(hidden, multiple, multiplier) == inner:
                return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier}
    # Half above F, so that cutting off the fraction gives F whatever the rounding.
    multiplier = (inner + 0.5) / _inner(hidden, 1, None)
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


RELEASE = Release("params.json", "consolidated", axis, read, write)
