"""How a round of training steps goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from driver import ContenderError, Worker
from generating import speed
from models import MODELS
from prompts import random_rows
from stand import Result, Stand


class Training(Stand):
    """Measures rows in which steps are trained."""

    def _trainers(self, stack: ExitStack, model: str) -> dict[str, Worker]:
        trainers = {}
        for name in self.contenders:
            for variant in ("plain", "fused") if name == "transformers" else ("plain",):
                if name == "llama.cpp" or (worker := self.worker(stack, name, model)) is None:
                    continue
                worker.ask("start_training", learning_rate=1e-4, variant=variant)
                trainers[f"{name}, {variant}" if name == "transformers" else name] = worker
        return trainers

    def training(self, model: str, batch: int, length: int) -> Result:
        """Tokens per second of a training step."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            trainers = self._trainers(stack, model)
            return {"values": self._compare_training(trainers, rows, MODELS[model].same_losses)}

    def _compare_training(
        self, trainers: dict[str, Worker], rows: list[list[int]], same: int = 2
    ) -> dict[str, list[float]]:
        losses = np.array(
            [[w.ask("train", rows=rows)["loss"] for _ in range(2)] for w in trainers.values()]
        )
        if np.ptp(losses[:, :same], axis=0).max(initial=0.0) > 2e-3:
            raise ContenderError(f"the losses of the first steps differ: {losses.tolist()}")
        return self._train_in_turn(trainers, rows)

    def _tuners(self, stack: ExitStack, model: str) -> dict[str, Worker]:
        tuners = {}
        for name, variant in (("lm", "lora"), ("lm, full", "plain")):
            worker = self.ours(stack, model)
            worker.ask("start_training", learning_rate=1e-4, variant=variant)
            tuners[name] = worker
        return tuners

    def lora(self, model: str, batch: int, length: int) -> Result:
        """Tokens per second of a step that trains an adapter, and of one that trains all."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            return {"values": self._train_in_turn(self._tuners(stack, model), rows)}

    def lora_memory(self, model: str, batch: int, length: int) -> Result:
        """Peak memory of processes that train an adapter, or all weights, for three steps."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            return {"values": _peaks(self._tuners(stack, model), rows)}

    def _train_in_turn(
        self, trainers: dict[str, Worker], rows: list[list[int]]
    ) -> dict[str, list[float]]:
        for worker in trainers.values():
            worker.ask("train", rows=rows)
        return self.in_turn({name: step(worker, rows) for name, worker in trainers.items()})

    def training_memory(self, model: str, batch: int, length: int) -> Result:
        """Peak memory of a process that reads the model and trains three steps."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            return {"values": _peaks(self._trainers(stack, model), rows)}


def _peaks(trainers: dict[str, Worker], rows: list[list[int]]) -> dict[str, list[float]]:
    """Gigabytes after three steps, one process after the other."""
    values = {}
    for name, worker in trainers.items():
        for _ in range(3):
            worker.ask("train", rows=rows)
        values[name] = [worker.ask("peak_memory") / 1e9]
        worker.close()
    return values


def step(worker: Worker, rows: list[list[int]]) -> Callable[[], float]:
    """A turn of a training step, in which the last token of a row is a target only."""
    return speed(worker, "train", rows, len(rows) * (len(rows[0]) - 1))
