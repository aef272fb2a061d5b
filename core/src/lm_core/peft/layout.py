"""The names and shapes of adapters: our own, PEFT's and MindFormers'.

A LoRA adds `scale * (x A) B` to a layer's `x W`. Ours are stored as weights are, `<layer>.lora_a`
[in, r] and `<layer>.lora_b` [r, out]. Others store A as [r, in] and B as [out, r], and may have one
layer where we have several (GPT-2's c_attn is our q, k and v). So B goes through the operations of
that layer's row in the weight table, with r in place of `in`: whatever they do to the outputs of W
they do to those of B. A is shared by the parts. The other way, parts with inputs A1, A2, ... become
one adapter of rank r1 + r2 + ..., whose B is zero outside of the blocks; what is zero there is left
out again when it is read for a smaller rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lm_core.checkpoint.layout.ops import Transpose
from lm_core.checkpoint.layout.table import Row
from lm_core.checkpoint.layout.tensors import Tensors
from lm_core.errors import CheckpointError, some
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.config.model import LoraConfig, ModelConfig
    from lm_core.spec import ModelSpec

Layout = Literal["native", "peft", "mindformers"]
Pair = tuple[np.ndarray, np.ndarray]

_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\."
    r"(?:lora_(?P<native>[ab])|lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|(?:mindpet|tk)_delta_lora_(?P<mindformers>[ABab]))"
)
_TABLES: dict[Layout, str] = {"peft": "hf", "mindformers": "mindformers"}
_SPELLED: dict[Layout, tuple[str, str]] = {
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "mindformers": ("{}.mindpet_delta_lora_A", "{}.mindpet_delta_lora_B"),
}


def is_adapter_name(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter, in any layout."""
    return _NAME.fullmatch(name) is not None


def layers(names: Iterable[str]) -> list[str]:
    """Our names of the layers to which some adapter parameters belong."""
    return sorted({name.rpartition(".")[0] for name in names})


def load(
    tensors: Tensors,
    spec: ModelSpec,
    config: ModelConfig,
    lora: LoraConfig,
    scales: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """The adapter among some tensors, under our names and with one rank and scale for all layers.

    Args:
        tensors: may hold others too, which are passed over.
        spec: the model family.
        config: the architecture of the base.
        lora: rank and alpha of the result. Smaller ranks are filled up with zeros.
        scales: alpha / rank of their layers where it is not that of `lora`.

    Raises:
        CheckpointError: a layer or half of a pair is missing or unknown, or has another shape.
    """
    layout, pairs = pairs_of(tensors)
    layers = targets.linear_layers(spec, config)
    rows = {} if layout == "native" else _rows(spec, config, layout)
    unknown = [layer for layer in pairs if layer not in (layers if layout == "native" else rows)]
    if unknown:
        raise CheckpointError(
            f"{tensors.where}: has adapters of {some(unknown)}, which are no layers of this "
            f"{spec.name}; use the model that it was trained for"
        )
    found: dict[str, np.ndarray] = {}
    for theirs, (a, b) in pairs.items():
        native = layout == "native"
        parts = {theirs: (a, b)} if native else _ours(rows[theirs], a, b, config)
        factor = (scales or {}).get(theirs, lora.scale) / lora.scale
        for layer, pair in parts.items():
            _put(found, layer, layers[layer], pair, lora.lora_rank, factor, tensors.where)
    return found


def save(
    arrays: Mapping[str, np.ndarray],
    spec: ModelSpec,
    config: ModelConfig,
    lora: LoraConfig,
    layout: Layout,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Our arrays under their names, and adapter_config.json of PEFT for them."""
    rows = _rows(spec, config, layout)
    found: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for theirs, row in rows.items():
        parts = [_pair(arrays, name.removesuffix(".weight")) for name in row.ours]
        if any(part is not None for part in parts):
            a, b = _theirs(row, parts, spec.tables["hf"].shapes(config), config)
            for name, array in zip(_SPELLED[layout], (a, b), strict=True):
                found[name.format(theirs)] = np.ascontiguousarray(array)
            ranks[theirs] = a.shape[0]
    heads = {
        f"base_model.model.{name}": array.T
        for name, array in arrays.items()
        if targets.is_task_head(name)
    }
    found |= {name: np.ascontiguousarray(array) for name, array in heads.items()}
    special = {name: rank for name, rank in ranks.items() if rank != lora.lora_rank}
    transposed = [_stored_out_in(row, config) for name, row in rows.items() if name in ranks]
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if heads else "CAUSAL_LM",
        "r": lora.lora_rank,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": _shortest(list(ranks), rows),
        "fan_in_fan_out": not all(transposed),
        "bias": "none",
        "inference_mode": True,
        "rank_pattern": special,
        "alpha_pattern": {name: lora.scale * rank for name, rank in special.items()},
        "modules_to_save": ["score"] if heads else None,
    }
    return found, settings


def pairs_of(tensors: Tensors) -> tuple[Layout, dict[str, Pair]]:
    """A and B by layer as they are stored, and whose names they have."""
    halves: dict[str, dict[str, np.ndarray]] = {}
    layout: Layout = "native"
    for name in tensors.specs:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        kinds: list[Layout] = ["native", "peft", "mindformers"]
        layout = next(kind for kind in kinds if match[kind])
        half = match[layout].lower()
        halves.setdefault(match["layer"], {})[half] = tensors.read(name)
    single = [layer for layer, both in halves.items() if len(both) != 2]
    if single:
        raise CheckpointError(
            f"{tensors.where}: only one of A and B is there for {some(single)}; use a complete copy"
        )
    return layout, {layer: (both["a"], both["b"]) for layer, both in halves.items()}


def _rows(spec: ModelSpec, config: ModelConfig, layout: Layout) -> dict[str, Row]:
    """The table's rows for linear layers, by their names of the layers (with or without prefix)."""
    table = spec.tables[_TABLES[layout]]
    layers = targets.linear_layers(spec, config)
    found: dict[str, Row] = {}
    for row in table.expand(config):
        if len(row.theirs) == 1 and all(n.removesuffix(".weight") in layers for n in row.ours):
            name = row.theirs[0]
            if name.endswith(".weight") and all(n.endswith(".weight") for n in row.ours):
                found[name.removesuffix(".weight")] = row
    return found


def _stored_out_in(row: Row, config: ModelConfig) -> bool:
    """Whether they store this weight as [out, in]; ours are [in, out]."""
    flips = [op for op in row.ops if isinstance(op, Transpose)]
    return sum(op.when is None or op.when(config) for op in flips) % 2 == 1


def _ours(row: Row, a: np.ndarray, b: np.ndarray, config: ModelConfig) -> dict[str, Pair]:
    """Their A [r, in] and B [out, r] of one layer -> A [in, r] and B [r, out] of each of ours."""
    parts = row.load([b if _stored_out_in(row, config) else b.T], config)
    names = [name.removesuffix(".weight") for name in row.ours]
    return {name: (a.T, part) for name, part in zip(names, parts, strict=True)}


def _theirs(
    row: Row, parts: list[Pair | None], shapes: Mapping[str, Any], config: ModelConfig
) -> Pair:
    """The reverse of `_ours`; parts without an adapter are None."""
    given = [part for part in parts if part is not None]
    shared = len(given) == len(parts) and all(
        np.array_equal(part[0], given[0][0]) for part in given
    )
    a = given[0][0] if shared else np.concatenate([part[0] for part in given], axis=1)
    blocks, start = [], 0
    for name, part in zip(row.ours, parts, strict=True):
        block = np.zeros((a.shape[1], shapes[name][1]), a.dtype)
        if part is not None:
            rank = part[1].shape[0]
            block[start : start + rank] = part[1]
            start += 0 if shared else rank
        blocks.append(block)
    (b,) = row.save(blocks, config)
    return a.T, b if _stored_out_in(row, config) else b.T


def _pair(arrays: Mapping[str, np.ndarray], layer: str) -> Pair | None:
    a = arrays.get(f"{layer}.lora_a")
    return None if a is None else (a, arrays[f"{layer}.lora_b"])


def _put(
    found: dict[str, np.ndarray],
    layer: str,
    shape: tuple[int, ...],
    pair: Pair,
    rank: int,
    factor: float,
    where: str,
) -> None:
    """Adds a pair, checked, filled up to `rank` and scaled."""
    a, b = _without_zeros(*pair, rank)
    own = a.shape[-1]
    if a.shape != (shape[0], own) or b.shape != (own, shape[1]) or own > rank:
        raise CheckpointError(
            f"{where}: the adapter of {layer} is {list(a.shape)} and {list(b.shape)}; must be "
            f"[{shape[0]}, {rank}] and [{rank}, {shape[1]}]; use the model that it was trained for"
        )
    if factor != 1.0:
        b = (b * np.float32(factor)).astype(b.dtype)
    found[f"{layer}.lora_a"] = np.ascontiguousarray(np.pad(a, ((0, 0), (0, rank - own))))
    found[f"{layer}.lora_b"] = np.ascontiguousarray(np.pad(b, ((0, rank - own), (0, 0))))


def _without_zeros(a: np.ndarray, b: np.ndarray, rank: int) -> Pair:
    """A [in, r] and B [r, out] without rows of B that are 0, where r is more than `rank`."""
    if a.shape[-1] <= rank or a.shape[-1] != b.shape[0]:
        return a, b
    used = np.flatnonzero(b.any(axis=1)) if b.any() else np.arange(rank)
    return a[:, used], b[used]


def _shortest(names: list[str], all_names: Iterable[str]) -> list[str]:
    """The last parts of the names where these mean the same layers."""
    for length in (1, 2):
        ends = sorted({".".join(name.split(".")[-length:]) for name in names})
        same = {n for n in all_names if any(n == e or n.endswith(f".{e}") for e in ends)}
        if same == set(names):
            return ends
    return sorted(names)
