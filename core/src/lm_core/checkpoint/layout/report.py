"""What does not fit between a file and a layout, so that all of it can be told at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lm_core.checkpoint.layout.tensors import Shape
from lm_core.errors import CheckpointError, some

_QUANTIZED = re.compile(
    r".*\.(SCB|weight_format|weight_scale|qweight|qzeros|scales|g_idx"
    r"|weight\.(data|absmax|quant_map|quant_state.*|nested_.*))"
)
"""What stands beside weights of few bits, as bitsandbytes, GPTQ and the models' own programs do."""


@dataclass
class Report:
    """Names and shapes, collected while a table is gone through."""

    where: str
    layout: str
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    def check(self, name: str, actual: Shape, expected: Shape) -> None:
        """Remembers a wrong shape."""
        if tuple(actual) != tuple(expected):
            self.shapes.append(f"{name} is {list(actual)} and must be {list(expected)}")

    def finish(self) -> None:
        """Raises CheckpointError, one line for each kind of trouble, if there was any."""
        if few := [name for name in self.unknown if _QUANTIZED.fullmatch(name)]:
            raise CheckpointError(
                f"{self.where}: holds quantized weights ({few[0]} and {len(few) - 1} more beside "
                f"them); must hold float32, float16 or bfloat16; use the checkpoint of this model "
                f"that is not quantized"
            )
        advice = (
            f"the {self.layout} layout of this configuration says so; "
            f"use the configuration that belongs to these weights"
        )
        kinds = (
            ("missing", some(self.missing), len(self.missing)),
            ("unknown", some(self.unknown), len(self.unknown)),
            ("wrongly shaped", some(self.shapes, "; "), len(self.shapes)),
        )
        problems = [
            f"{self.where}: {count} {kind} tensor{'s' * (count > 1)}: {names}; {advice}"
            for kind, names, count in kinds
            if count
        ]
        if problems:
            raise CheckpointError(*problems)
