"""The block that Llama and its relatives are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mindspore import nn

from lm_core.nn.attention import CausalSelfAttention
from lm_core.nn.decoder import Block
from lm_core.nn.mlp import GatedMlp
from lm_core.parallel.context import ParallelContext

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig


def gated_block(
    config: ModelConfig,
    context: ParallelContext,
    layer: int,
    *,
    inner: int,
    norm: Callable[[], nn.Cell],
    bias: bool = False,
    branch_dropout: float = 0.0,
    residual_from_norm: bool = False,
    **attention: Any,
) -> Block:
    """Attention and a gated feed-forward layer (SwiGLU), each after a norm.

    Args:
        config: sizes, types, and the standard deviation of initial weights.
        context: the ranks that share the layers.
        layer: number of the block.
        inner: F.
        norm: makes a norm of size H.
        bias: of all linear layers.
        branch_dropout: rate on both branches.
        residual_from_norm: see Block.
        **attention: what CausalSelfAttention is given beside these (`kv_heads`, `rotate` ...).
    """
    std, hidden = config.initializer_range, config.hidden_size
    options = {
        "bias": bias, "dtype": config.param_init_type, "compute_dtype": config.compute_dtype,
    }  # fmt: skip
    given: dict[str, Any] = {
        "dropout": 0.0,
        "softmax_type": config.softmax_compute_type,
        **attention,
    }
    attend = CausalSelfAttention(
        hidden,
        config.num_heads,
        context,
        std=std,
        out_std=std,
        site=3 * layer,
        blockwise=config.use_flash_attention,
        **given,
        **options,
    )
    return Block(
        attend,
        GatedMlp(hidden, inner, context, std=std, **options),
        norm(),
        norm(),
        dropout=branch_dropout,
        site=3 * layer + 1,
        residual_from_norm=residual_from_norm,
    )
