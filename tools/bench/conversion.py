"""How much memory it takes to convert a model that is larger than what should be needed."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from driver import ContenderError, environment

# VmHWM and not `ru_maxrss`, which begins with the size of the process that started this one.
PROGRAM = """
import re, sys
from lm_core.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""
BESIDE = 500e6
"""Bytes for Python, its libraries, and buffers."""


class Published:
    """Weights of a preset's sizes as they are published, made as they are read.

    Args:
        preset: of Baichuan 2.
        layers: as many blocks of it.
    """

    where = "made"
    metadata: dict[str, str] = {}

    def __init__(self, preset: str, layers: int) -> None:
        from lm_baichuan2 import SPEC
        from lm_core.checkpoint.layout import Memory, TensorSpec

        self.config = SPEC.presets[preset].copy(num_layers=layers)
        table = SPEC.tables["hf"]
        nothing = {n: np.empty(s, np.dtype([])) for n, s in table.shapes(self.config).items()}
        found = table.save(Memory(nothing), self.config).specs
        half = np.dtype(np.float16)
        self.specs = {name: TensorSpec(spec.shape, half) for name, spec in found.items()}
        self._random = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(half)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max(2 * prod(spec.shape) for spec in self.specs.values())

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(2 * prod(spec.shape) for spec in self.specs.values())

    def read(self, name: str) -> np.ndarray:
        return np.resize(self._random, self.specs[name].shape)

    def write(self, folder: Path) -> None:
        """config.json, and shards with an index."""
        from lm_core.checkpoint.tensorfile import write_sharded

        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config.to_hf()))
        write_sharded(folder, self, int(2e9))


def peak(source: Path, target: Path, layout: str) -> int:
    """Bytes of the process that converts, at its fullest."""
    words = ["convert", "baichuan2", "--input", source, "--output", target, "--format", layout]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ContenderError(f"convert: {done.stderr[-500:]}")
    return int(done.stdout.splitlines()[-1]) * 1024


def measured(folder: Path, preset: str, layers: int, layout: str, rounds: int) -> dict[str, Any]:
    """Gigabytes of the conversion, and what they are compared with."""
    import shutil

    made, source = Published(preset, layers), folder / f"{preset}-{layers}"
    if not source.exists():
        made.write(source)
    found = []
    for number in range(rounds):
        target = folder / f"{source.name}-{layout}-{number}"
        found.append(peak(source, target, layout) / 1e9)
        shutil.rmtree(target)
    allowed = 2 * made.largest + BESIDE
    return {"lm": found, ALLOWED: [allowed / 1e9] * rounds}


ALLOWED = "2 x the largest tensor + 0.5 GB"
