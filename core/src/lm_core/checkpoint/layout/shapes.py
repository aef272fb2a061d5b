"""Names and shapes of the parameters in the blocks of `lm_core.nn`, for weight tables.

A package adds what stands before and behind its blocks. Linear weights are [in, out].
"""

from __future__ import annotations

from lm_core.checkpoint.layout.tensors import Shape


def norm(name: str, size: int, bias: bool = True) -> dict[str, Shape]:
    """A norm of H; an RMS norm has no bias."""
    found: dict[str, Shape] = {f"{name}.weight": (size,)}
    return {**found, f"{name}.bias": (size,)} if bias else found


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, Shape]:
    """A linear layer."""
    found: dict[str, Shape] = {f"{name}.weight": (inputs, outputs)}
    return {**found, f"{name}.bias": (outputs,)} if bias else found


def plain_block(layer: int, hidden: int, inner: int) -> dict[str, Shape]:
    """`lm_core.nn.learned_positions.plain_block`: H = `hidden`, F = `inner`, biases everywhere."""
    attention, mlp = f"layers.{layer}.attention", f"layers.{layer}.mlp"
    found = norm(f"{attention}_norm", hidden)
    for name in ("q", "k", "v", "out"):
        found |= linear(f"{attention}.{name}", hidden, hidden)
    found |= norm(f"{mlp}_norm", hidden)
    found |= linear(f"{mlp}.up", hidden, inner)
    found |= linear(f"{mlp}.down", inner, hidden)
    return found


def gated_block(
    layer: int,
    hidden: int,
    inner: int,
    *,
    queries: int | None = None,
    keys: int | None = None,
    norm_bias: bool = False,
    qkv_bias: bool = False,
    bias: bool = False,
) -> dict[str, Shape]:
    """`lm_core.nn.gated.gated_block`: H = `hidden`, F = `inner`.

    Args:
        layer: number of the block.
        hidden: H.
        inner: F.
        queries: N * D; None: H.
        keys: G * D; None: as the queries.
        norm_bias: the norms have one.
        qkv_bias: queries, keys and values have one.
        bias: the other linear layers have one.
    """
    attention, mlp = f"layers.{layer}.attention", f"layers.{layer}.mlp"
    queries = hidden if queries is None else queries
    keys = queries if keys is None else keys
    found = norm(f"{attention}_norm", hidden, norm_bias)
    for name, outputs in (("q", queries), ("k", keys), ("v", keys)):
        found |= linear(f"{attention}.{name}", hidden, outputs, qkv_bias)
    found |= linear(f"{attention}.out", queries, hidden, bias)
    found |= norm(f"{mlp}_norm", hidden, norm_bias)
    found |= linear(f"{mlp}.gate", hidden, inner, bias)
    found |= linear(f"{mlp}.up", hidden, inner, bias)
    found |= linear(f"{mlp}.down", inner, hidden, bias)
    return found
