"""Token cross entropy."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

IGNORED = -100
"""The label of a position that is not trained."""


class CrossEntropy(nn.Cell):
    """Sum over tokens of -log softmax(logits)[label], and how many tokens count; in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()

    def construct(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """logits: [T, V]; labels: int32 [T], IGNORED where not trained. Returns scalars."""
        kept = (labels != IGNORED).astype("float32")
        safe = ops.maximum(labels, 0).reshape((-1, 1))
        losses = -self.pick(self.log_softmax(logits.astype("float32")), 1, safe).reshape((-1,))
        return (losses * kept).sum(), kept.sum()
