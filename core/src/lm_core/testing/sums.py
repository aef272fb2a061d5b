"""The sums over ranks of a training step: those that are said, and those of compiled graphs.

MindSpore writes a graph down as text; a sum over ranks is a line with its group and its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.parallel import traffic
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.partition import Partition

Sums = dict[str, list[int]]
"""Kind of group ("tp", "dp", ...) -> how many, and the bytes of their tensors together."""

SETTINGS = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate"}
"""Environment of a process whose graphs are written down, as they are when they are complete."""
FOLDER = "MS_DEV_SAVE_GRAPHS_PATH"
_SUM = re.compile(r'= AllReduce\(.*group: "(\w+)-\d+x\d+x\d+')
_SHAPE = re.compile(r"-> \(<Tensor\[Float32\], \(([\d, ]*)\)>")


def graphs(folder: Path | None) -> set[Path]:
    """What has been written down so far."""
    return set(folder.rglob("*_validate_*.ir")) if folder else set()


def counted(written: Iterable[Path]) -> Sums:
    """Those of graphs that run once in a step."""
    found: Sums = {}
    for path in written:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, types in zip(lines, lines[1:], strict=False):
            if group := _SUM.search(line):
                shape = _SHAPE.search(types)
                assert shape, types
                size = 4 * prod(int(n) for n in shape[1].split(",") if n.strip())
                _add(found, group[1], 1, size)
    return found


def said(run: RunConfig, part: Partition, stage: int) -> Sums:
    """What `traffic.step` says of one update."""
    found: Sums = {}
    trained = targets.trained(part.shapes, run.model.config.pet_config)
    for one in traffic.step(run, part, stage, trained):
        if one.operation == traffic.SUM:
            _add(found, one.group, one.calls, one.size)
    return found


def _add(found: Sums, group: str, calls: int, size: int) -> None:
    before = found.get(group, [0, 0])
    found[group] = [before[0] + calls, before[1] + size]
