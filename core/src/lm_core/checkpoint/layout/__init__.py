"""Foreign weight layouts as tables of reversible operations. NumPy only."""

from lm_core.checkpoint.layout.ops import (
    Concat,
    Each,
    PermuteRope,
    Reshape,
    Split,
    SplitHeads,
    Tie,
    Transpose,
)
from lm_core.checkpoint.layout.release import Pieces, Release, Slices
from lm_core.checkpoint.layout.table import Native, Table
from lm_core.checkpoint.layout.tensors import (
    BFLOAT16,
    Cast,
    Memory,
    Tensors,
    TensorSpec,
    cast,
    same_bits,
    stream,
)

__all__ = [
    "BFLOAT16",
    "Cast",
    "Concat",
    "Each",
    "Memory",
    "Native",
    "PermuteRope",
    "Pieces",
    "Release",
    "Reshape",
    "Slices",
    "Split",
    "SplitHeads",
    "Table",
    "TensorSpec",
    "Tensors",
    "Tie",
    "Transpose",
    "cast",
    "same_bits",
    "stream",
]
