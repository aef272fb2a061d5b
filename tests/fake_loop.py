"""What callbacks see of a loop that computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from lm_core.checkpoint import atomic
from lm_core.errors import CheckpointError
from lm_core.parallel.context import ParallelContext
from lm_core.train.agreement import Agreement


def record(step: int, **changes):
    values = {
        "step": step, "epoch": 1, "loss": 2.0 + step, "lr": 3e-4, "grad_norm": 0.5, "tokens": 64,
        "tokens_per_second": 1234.5, "loss_scale": 1.0, "skipped": False,
    }  # fmt: skip
    return {**values, **changes}


class Loop(SimpleNamespace):
    """What callbacks see of a loop; its state saves a file that says which step it was."""

    def __init__(self, total: int = 10, start: int = 0) -> None:
        super().__init__(steps=start, total_steps=total, epochs=3, saved=[], broken=())
        self.state = SimpleNamespace(snapshot=self.snapshot)
        self.agreement = Agreement(ParallelContext.local())

    def seconds_left(self) -> float:
        return 65.0

    def snapshot(self, *, copy: bool = True) -> SimpleNamespace:
        step = self.steps if copy else None

        def write(path: Path) -> None:
            now = self.steps if step is None else step
            if now in self.broken:
                raise CheckpointError(f"{path}: disk is full; make room")
            with atomic.new_directory(path, overwrite=True) as scratch:
                (scratch / "training.json").write_text(json.dumps({"step": now}))
            self.saved.append(now)

        return SimpleNamespace(write=write)

    def run(self, *items, **changes) -> Loop:
        for item in items:
            item.begin(self)
        while self.steps < self.total_steps:
            self.steps += 1
            for item in items:
                item.after_step(self, record(self.steps, **changes))
            for item in items:
                item.end_step(self)
        for item in items:
            item.finish(self)
            item.close()
        return self


def names(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.iterdir()), key=lambda n: int(n.split("-")[-1]))
