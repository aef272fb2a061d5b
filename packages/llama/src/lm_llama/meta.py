"""Llama as Meta publishes it: params.json beside consolidated.00.pth, consolidated.01.pth, ...

The sizes in params.json are those of Meta's `ModelArgs`. Two things are not in it: the vocabulary
is often -1 or left out, so the rows of the table count; and for how many tokens the model was
trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_core.checkpoint.layout import Release, TensorSpec
from lm_core.errors import ConfigError
from lm_core.log import notice_once
from lm_llama.config import LlamaConfig

Specs = Mapping[str, TensorSpec]

_TABLE = "tok_embeddings.weight"
# Our field -> their key and the value that Meta's code takes where it is missing; None: required.
_FIELDS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("dim", None),
    "num_layers": ("n_layers", None),
    "num_heads": ("n_heads", None),
    "multiple_of": ("multiple_of", 256),
    "rms_norm_eps": ("norm_eps", 1e-5),
    "theta": ("rope_theta", 10000.0),
}
_OPTIONAL = ("n_kv_heads", "ffn_dim_multiplier")
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
    known = {key for key, _ in _FIELDS.values()} | {*_OPTIONAL, *_OF_A_RUN}
    found = [
        f"{key}: is {values[key]!r}; Llama is not built for that; use another checkpoint"
        for key in values
        if key not in known and values[key] not in (None, False)
    ]
    found += [
        f"{key}: is missing; must be there in params.json; copy the file again"
        for key, start in _FIELDS.values()
        if start is None and key not in values
    ]
    fields = {ours: values.get(key, start) for ours, (key, start) in _FIELDS.items()}
    fields |= {key: values[key] for key in _OPTIONAL if values.get(key) is not None}
    for key in ("rms_norm_eps", "theta", "ffn_dim_multiplier"):
        if type(fields.get(key)) is int:
            fields[key] = float(fields[key])
    vocabulary = values.get("vocab_size", -1)
    fields["vocab_size"] = _rows(specs, found) if vocabulary == -1 else vocabulary
    if found:
        raise ConfigError(*found)
    fields["seq_length"] = values.get("max_seq_len") or _trained_length(fields)
    config = LlamaConfig.parse(fields)
    inner = _inner(config.hidden_size, config.multiple_of, config.ffn_dim_multiplier)
    return config.copy(intermediate_size=inner)


def write(config: LlamaConfig) -> dict[str, Any]:
    """The contents of params.json.

    Raises:
        ConfigError: a network that Meta's code does not compute.
    """
    other = {
        "qkv_has_bias": config.qkv_has_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_scaling": config.rope.type != "default",
        "task": config.is_classifier,
    }
    found = [
        f"{key}: is {getattr(config, key)!r}, which params.json cannot say; the weights can be "
        f"written in another layout"
        for key, is_so in other.items()
        if is_so
    ]
    if found:
        raise ConfigError(*found)
    values = {key: getattr(config, ours) for ours, (key, _) in _FIELDS.items()}
    if config.theta == _FIELDS["theta"][1]:
        del values["rope_theta"]  # The code of Llama 1 and 2 knows no such key.
    if config.kv_heads != config.num_heads:
        values["n_kv_heads"] = config.kv_heads
    return values | _feed_forward(config) | {"vocab_size": config.vocab_size}


def _rows(specs: Specs, found: list[str]) -> int:
    if _TABLE not in specs:
        found.append(
            f"vocab_size: is not given and the weights have no {_TABLE}, whose rows would say it; "
            f"use a complete copy"
        )
        return 1
    return specs[_TABLE].shape[0]


def _trained_length(fields: Mapping[str, Any]) -> int:
    """Code Llama is known by its base of the angles, Llama 2 70B by its grouped heads."""
    if fields["theta"] > 10000.0:
        return 16384
    if "n_kv_heads" in fields:
        return 4096
    notice_once(
        "length of a Llama",
        "params.json: does not say for how many tokens the model was trained; 2048 is taken, as "
        "of the first Llama; set seq_length: 4096 for Llama 2",
    )
    return 2048


def _inner(hidden: int, multiple_of: int, multiplier: float | None) -> int:
    """F as Meta's code counts it."""
    inner = int(2 * (4 * hidden) / 3)
    if multiplier is not None:
        inner = int(multiplier * inner)
    return -(-inner // multiple_of) * multiple_of


def _feed_forward(config: LlamaConfig) -> dict[str, Any]:
    """Settings of which Meta's code makes this model's F."""
    hidden, inner = config.hidden_size, config.ffn_size
    for multiplier in (None, config.ffn_dim_multiplier):
        for multiple in (config.multiple_of, *(2**power for power in range(12, -1, -1))):
            if _inner(hidden, multiple, multiplier) == inner:
                factor = {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
                return {"multiple_of": multiple, **factor}
    # Half above F, so that cutting off the fraction gives F whatever the rounding.
    multiplier = (inner + 0.5) / _inner(hidden, 1, None)
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


RELEASE = Release(
    description="params.json", files="consolidated", axis=axis, read=read, write=write
)
