"""Rotary position embeddings (Su et al. 2021) in the half-split form of GPT-NeoX and Llama.

The first half of a head's numbers is turned against the second: with angles a,

    y1 = x1 cos a - x2 sin a,    y2 = x2 cos a + x1 sin a.

Swapping the halves is a product with a constant matrix: MindSpore's CPU back end is quick at
products and slow at cutting and joining the last axis.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from lm_core.config.rope import RopeScaling


def inverse_frequencies(
    size: int, theta: float, scaling: RopeScaling, trained: int
) -> tuple[np.ndarray, float]:
    """Radians a position for each pair, float64 [size / 2], and a factor on cosine and sine.

    Args:
        size: how many numbers of a head rotate.
        theta: base of the angles.
        scaling: how positions are stretched.
        trained: the length that the model was trained with.
    """
    factor = scaling.factor
    if scaling.type == "ntk":
        # The slowest pair turns 1 / factor as fast, the fastest as before (bloc97, 2023).
        theta = theta * factor ** (size / (size - 2)) if size > 2 else theta
    plain = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling.type == "linear":
        return plain / factor, 1.0
    if scaling.type == "yarn":
        return _yarn(plain, size, theta, scaling, trained)
    if scaling.type == "llama3":
        return _llama3(plain, scaling, trained), 1.0
    return plain, 1.0


def _yarn(
    plain: np.ndarray, size: int, theta: float, scaling: RopeScaling, trained: int
) -> tuple[np.ndarray, float]:
    """Peng et al. 2023, section 3.2 and 3.4: interpolates what turns seldom within the length."""
    length = scaling.original_max_position_embeddings or trained

    def pair(turns: float) -> float:
        """The pair that makes so many turns within the length."""
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), size - 1)
    ramp = (np.arange(size // 2) - low) / max(high - low, 0.001)
    share = np.clip(ramp, 0.0, 1.0)
    found = plain / scaling.factor * share + plain * (1.0 - share)
    attention = scaling.attention_factor
    if attention is None:
        attention = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0
    return found, attention


def _llama3(plain: np.ndarray, scaling: RopeScaling, trained: int) -> np.ndarray:
    """Llama 3.1: long waves are interpolated, short ones kept, those between are mixed."""
    length = scaling.original_max_position_embeddings or trained
    waves = 2 * np.pi / plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    return plain * share + plain / scaling.factor * (1.0 - share)


class Rotary(nn.Cell):
    """The angles of all layers.

    Args:
        head_dim: D.
        theta: base of the angles.
        scaling: how positions are stretched; None: not at all.
        trained: the length that the model was trained with.
        rotary_dim: the first numbers of each head, which rotate; None: all.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: RopeScaling | None,
        trained: int,
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__()
        rotary = rotary_dim or head_dim
        inverse, self.factor = inverse_frequencies(rotary, theta, scaling or RopeScaling(), trained)
        # What does not rotate has angle 0: cosine 1, sine 0.
        angles = np.zeros(head_dim, np.float64)
        angles[:rotary] = np.tile(inverse, 2)
        self.frequencies = Tensor(angles.astype(np.float32).reshape(1, head_dim))
        self.head_dim = head_dim
        self.swap = Tensor(_swap(head_dim, rotary).reshape(1, head_dim, head_dim))
        self.same = Tensor(np.eye(head_dim, dtype=np.float32).reshape(1, head_dim, head_dim))

    def angles(self, positions: Tensor) -> Tensor:
        """positions: int32 [T]. Returns float32 [T, D]."""
        return positions.astype(ms.float32).reshape((-1, 1)) * self.frequencies

    def matrices(self, positions: Tensor, scale: float) -> Tensor:
        """What turns the heads of each token as a product: one operator where `Rotate` has four.

        Args:
            positions: int32 [B], few of them: a matrix is D times the size of a row.
            scale: factor on the result.

        Returns:
            float32 [B, D, D].
        """
        angles = ops.expand_dims(self.angles(positions), 1)
        turned = self.same * ops.cos(angles) + self.swap * ops.sin(angles)
        return turned * (scale * self.factor)

    def construct(self, positions: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all heads of all tokens.

        Args:
            positions: int32 [T].
            heads: how many heads stand side by side.
            scale: factor on both.

        Returns:
            float32 [T * heads, D], twice.
        """
        angles = self.angles(positions)
        scale = scale * self.factor
        rows = (angles.shape[0] * heads, self.head_dim)
        return (
            ops.tile(ops.cos(angles) * scale, (1, heads)).reshape(rows),
            ops.tile(ops.sin(angles) * scale, (1, heads)).reshape(rows),
        )


def _swap(head_dim: int, rotary: int) -> np.ndarray:
    """float32 [D, D]: x times this is (-x2, x1, 0) for the halves x1, x2 of what rotates."""
    half, found = rotary // 2, np.zeros((head_dim, head_dim), np.float32)
    found[np.arange(half) + half, np.arange(half)] = -1.0
    found[np.arange(half), np.arange(half) + half] = 1.0
    return found


class Rotate(nn.Cell):
    """Turns the rows of one layer.

    Args:
        head_dim: D.
        rotary_dim: the first numbers of each head, which rotate.
        dtype: of the rows.
    """

    def __init__(self, head_dim: int, rotary_dim: int | None = None) -> None:
        super().__init__()
        self.swap = Tensor(_swap(head_dim, rotary_dim or head_dim))
        self.product = ops.MatMul()
        self.product_bt = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x, cos, sin: [T, D]. Returns [T, D] of the type of x."""
        y = x.astype(ms.float32)
        return (y * cos + self.product(y, self.swap) * sin).astype(x.dtype)

    def bprop(
        self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turns back."""
        dy = dout.astype(ms.float32)
        cos, sin = ops.depend(cos, dout), ops.depend(sin, dout)
        dx = dy * cos + self.product_bt(dy * sin, self.swap)
        return dx.astype(x.dtype), ops.zeros_like(cos), ops.zeros_like(sin)
