"""How a round of a row goes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import blocks
import conversion
import numpy as np
import preparing
import probe
import serving
import several
from driver import ContenderError, Worker, environment
from prompts import check_agreement, random_rows
from rows import ROWS
from weights import MODELS

Result = dict[str, Any]
HELP = {
    "lm": ["-m", "lm_core.cli", "pretrain", "gpt2", "--help"],
    "transformers": ["-m", "transformers.cli.transformers", "--help"],
}


class Bench:
    """Measures rows.

    Args:
        scratch: an empty folder.
        contenders: "lm" and others.
        rounds: how often everybody has a turn.
    """

    def __init__(self, scratch: Path, contenders: list[str], rounds: int) -> None:
        self.scratch, self.contenders, self.rounds = scratch, contenders, rounds
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._folders: dict[str, Path] = {}

    def measure(self, name: str) -> Result:
        """A row: `{"values": {contender: [one number a round]}, ...}`.

        Raises:
            ContenderError: a contender failed, or contenders compute different things.
        """
        row = ROWS[name]
        found = getattr(self, row.measure)(**row.arguments)
        return {
            "title": row.title, "unit": row.unit, "higher": row.higher, "targets": row.targets,
            "least_share": row.least_share,
            "versions": dict(self.versions), "missing": dict(self.missing), **found,
        }  # fmt: skip

    def folder(self, model: str) -> str:
        """Where everybody reads a model."""
        if model not in self._folders:
            folder = self._folders[model] = self.scratch / model
            tensors = MODELS[model].make(folder)
            if "llama.cpp" in self.contenders:
                try:
                    MODELS[model].make_gguf(folder, tensors)
                except ImportError as error:
                    self.missing["llama.cpp"] = str(error)
        return str(self._folders[model])

    def worker(self, stack: ExitStack, name: str, model: str, **options: Any) -> Worker | None:
        """A contender that has read a model; None where its library is not installed."""
        folder = self.folder(model)
        if name in self.missing:
            return None
        worker = stack.enter_context(Worker(name))
        try:
            self.versions[name] = worker.ask("version")
        except ContenderError as error:
            if "ModuleNotFoundError" not in str(error):
                raise
            self.missing[name] = "not installed"
            return None
        worker.ask("load", folder=folder, **options)
        return worker

    def workers(self, stack: ExitStack, model: str) -> dict[str, Worker]:
        """All contenders that are there."""
        found = {name: self.worker(stack, name, model) for name in self.contenders}
        return {name: worker for name, worker in found.items() if worker is not None}

    def in_turn(self, turns: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """What each finds in rounds in which all have a turn, each round begun by another."""
        names, found = list(turns), {name: [] for name in turns}
        for number in range(self.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(0.2)  # the threads of the one before go to sleep
                found[name].append(turns[name]())
        return found

    def generation(self, model: str, batch: int, prompt: int, new: int) -> Result:
        """Tokens per second: new ones, or prompt tokens where only one is new."""
        prompts = random_rows(model, batch, prompt, seed=prompt)
        counted = batch * (new if new > 1 else prompt)
        read = MODELS[model].weight_bytes * new
        with ExitStack() as stack:
            workers = self.workers(stack, model)
            # Graphs are compiled and libraries warm themselves up, and all must agree.
            check_agreement(
                {n: w.ask("decode", prompts=prompts, new=new) for n, w in workers.items()}
            )

            def turn(worker: Worker) -> Callable[[], dict[str, float]]:
                def run() -> dict[str, float]:
                    before = probe.read_bandwidth()
                    seconds = worker.ask("decode", prompts=prompts, new=new)["seconds"]
                    bandwidth = (before + probe.read_bandwidth()) / 2
                    return {"value": counted / seconds, "share": read / seconds / bandwidth}

                return run

            found = self.in_turn({name: turn(worker) for name, worker in workers.items()})
        values = {name: [one["value"] for one in own] for name, own in found.items()}
        shares = {name: [one["share"] for one in own] for name, own in found.items()}
        return {"values": values} if new == 1 else {"values": values, "shares": shares}

    def serving(self, model: str, clients: int, prompt: int, new: int) -> Result:
        """New tokens per second of clients of our server, and of `generate` on their prompts."""
        prompts = random_rows(model, clients, prompt, seed=prompt)
        with ExitStack() as stack:
            worker = self.worker(stack, "lm", model)
            assert worker is not None
            port = worker.ask("serve", batch=serving.BATCH, longest=prompt + new)
            parts = [prompts[n : n + serving.BATCH] for n in range(0, clients, serving.BATCH)]
            turns = {
                "lm": lambda: serving.seconds(port, prompts, new),
                serving.GENERATE: lambda: sum(
                    worker.ask("decode", prompts=part, new=new)["seconds"] for part in parts
                ),
            }
            for turn in turns.values():
                turn()
            found = self.in_turn(turns)
        return {"values": {n: [clients * new / one for one in own] for n, own in found.items()}}

    def forward(self, model: str, batch: int, length: int) -> Result:
        """Tokens per second from ids to the logits of all positions."""
        rows = random_rows(model, batch, length, seed=length)
        with ExitStack() as stack:
            workers = self.workers(stack, model)
            return {"values": self._compare_forward(workers, rows)}

    def _compare_forward(
        self, workers: dict[str, Worker], rows: list[list[int]]
    ) -> dict[str, list[float]]:
        check_agreement(
            {name: worker.ask("forward", rows=rows) for name, worker in workers.items()}
        )
        tokens = len(rows) * len(rows[0])
        turns = {name: _speed(w, "forward", rows, tokens) for name, w in workers.items()}
        return self.in_turn(turns)

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
            return {"values": self._compare_training(trainers, rows)}

    def _compare_training(
        self, trainers: dict[str, Worker], rows: list[list[int]]
    ) -> dict[str, list[float]]:
        losses = [
            [worker.ask("train", rows=rows)["loss"] for _ in range(2)]
            for worker in trainers.values()
        ]
        if np.ptp(losses, axis=0).max() > 2e-3:
            raise ContenderError(f"the losses of the first steps differ: {losses}")
        return self._train_in_turn(trainers, rows)

    def _tuners(self, stack: ExitStack, model: str) -> dict[str, Worker]:
        tuners = {}
        for name, variant in (("lm", "lora"), ("lm, full", "plain")):
            worker = self.worker(stack, "lm", model)
            assert worker is not None
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
        return self.in_turn({name: _step(worker, rows) for name, worker in trainers.items()})

    def training_memory(self, model: str, batch: int, length: int) -> Result:
        """Peak memory of a process that reads the model and trains three steps."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            return {"values": _peaks(self._trainers(stack, model), rows)}

    def _with_and_without_blocks(
        self, stack: ExitStack, model: str, length: int, trains: bool
    ) -> tuple[dict[str, Worker], dict[str, str]]:
        """Ours twice; and why the second is not there where it would not fit."""
        workers, needed = {}, blocks.bytes_without(MODELS[model], length, trains)
        for name, own in (("lm", True), (blocks.WITHOUT, False)):
            if own or needed <= blocks.MOST:
                worker = self.worker(stack, "lm", model, blocks=own)
                assert worker is not None
                if trains:
                    worker.ask("start_training", learning_rate=1e-4, variant="plain")
                workers[name] = worker
        absent = f"not run: would take {needed / 1e9:.0f} GB"
        return workers, {} if blocks.WITHOUT in workers else {blocks.WITHOUT: absent}

    def blocks(self, model: str, length: int, trains: bool) -> Result:
        """Tokens per second of a pass or a training step over one sequence."""
        with ExitStack() as stack:
            workers, missing = self._with_and_without_blocks(stack, model, length, trains)
            compare = self._compare_training if trains else self._compare_forward
            values = compare(workers, random_rows(model, 1, length + trains))
        return {"values": values, "missing": missing}

    def blocks_memory(self, model: str, length: int, trains: bool) -> Result:
        """What it adds to a process that has read the model, at its fullest."""
        values, rows = {}, random_rows(model, 1, length + trains)
        with ExitStack() as stack:
            workers, missing = self._with_and_without_blocks(stack, model, length, trains)
            for name, worker in workers.items():
                before = worker.ask("memory")
                for _ in range(2):
                    worker.ask("train" if trains else "forward", rows=rows)
                values[name] = [(worker.ask("peak_memory") - before) / 1e9]
                worker.close()
        return {"values": values, "missing": missing}

    def decode_memory(self, model: str) -> Result:
        """Peak memory of a process that reads the model and decodes 64 tokens."""
        values = {}
        prompts = random_rows(model, 1, 32, seed=1)
        with ExitStack() as stack:
            for name, worker in self.workers(stack, model).items():
                worker.ask("decode", prompts=prompts, new=64)
                values[name] = [worker.ask("peak_memory") / 1e9]
        return {"values": values}

    def first_token(self, model: str) -> Result:
        """Seconds from the start of a process: imports, reading the model, compiling."""
        prompts = random_rows(model, 1, 32, seed=1)
        self.folder(model)

        def turn(name: str) -> Callable[[], float]:
            def run() -> float:
                with ExitStack() as stack:
                    start = time.perf_counter()
                    worker = self.worker(stack, name, model)
                    if worker is None:
                        return float("nan")
                    worker.ask("decode", prompts=prompts, new=1)
                    return time.perf_counter() - start

            return run

        found = self.in_turn({name: turn(name) for name in self.contenders})
        return {"values": {name: found[name] for name in found if name not in self.missing}}

    def help(self) -> Result:
        """Seconds of a command that prints its help."""

        def turn(name: str) -> Callable[[], float]:
            def run() -> float:
                command = [sys.executable, *HELP[name]]
                start = time.perf_counter()
                done = subprocess.run(command, env=environment(), capture_output=True, text=True)
                seconds = time.perf_counter() - start
                if done.returncode:
                    raise ContenderError(f"{' '.join(command)}: {done.stderr[-500:]}")
                return seconds

            return run

        names = [name for name in self.contenders if name in HELP]
        return {"values": self.in_turn({name: turn(name) for name in names})}

    def planned(self, run: Result) -> Result:
        """Peak memory of a process that trains two updates, beside what was foretold."""
        from lm_core import spec as registry
        from lm_core.config.parallel import ParallelConfig
        from lm_core.nn import memory
        from lm_core.parallel.partition import Partition

        settings = registry.read_run(run)
        config = settings.model.config
        shapes = next(iter(registry.of_run(run).tables.values())).shapes(config)
        foretold = memory.training(settings, Partition(config, ParallelConfig(), shapes)).peak
        with Worker("lm") as worker, tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            self.versions["lm"] = worker.ask("version")
            worker.ask("pretrain", run=run, folder=f"{folder}/run")
            measured = worker.ask("peak_memory")
        return {"values": {"lm": [measured / 1e9], "lm plan": [foretold / 1e9]}}

    def _say_version(self) -> None:
        """Ours, where no worker stays."""
        with Worker("lm") as worker:
            self.versions["lm"] = worker.ask("version")

    def conversion(self, preset: str, layers: int, layout: str) -> Result:
        """Peak memory of a process that converts a checkpoint of several gigabytes."""
        self._say_version()
        found = conversion.measured(self.scratch, preset, layers, layout, self.rounds)
        return {"values": found}

    def preparation(self, dataset: str) -> Result:
        """Tokens per second from raw files to records, by data set."""
        self._say_version()
        return {"values": self.in_turn(preparing.turns(self.scratch / f"raw-{dataset}", dataset))}

    def several(self, degrees: dict[str, int]) -> Result:
        """Seconds of a training step of several processes, and of one with the same batch."""
        folder, numbers = self.scratch / f"several-{'-'.join(degrees)}", count()
        several.prepare(folder)

        def turn(wanted: dict[str, int]) -> Callable[[], float]:
            return lambda: several.step_seconds(folder, wanted, f"run-{next(numbers)}")

        self._say_version()
        return {"values": self.in_turn({"lm": turn(degrees), "lm, one process": turn({})})}

    def preprocessing(self, model: str, batch: int, length: int) -> Result:
        """Tokens per second from text files to records, and of a training step beside it."""
        rows = random_rows(model, batch, length + 1)
        with ExitStack() as stack:
            writer = self.worker(stack, "lm", model)
            trainer = self.worker(stack, "lm", model)
            assert writer is not None and trainer is not None
            trainer.ask("start_training", learning_rate=1e-4, variant="plain")
            trainer.ask("train", rows=rows)
            writer.ask("prepare_text", folder=str(self.scratch / "text"))
            turns = {
                "lm": lambda: writer.ask("preprocess", folder=str(self.scratch / "text")),
                "lm, training": _step(trainer, rows),
            }
            return {"values": self.in_turn(turns)}


def _peaks(trainers: dict[str, Worker], rows: list[list[int]]) -> dict[str, list[float]]:
    """Gigabytes after three steps, one process after the other."""
    values = {}
    for name, worker in trainers.items():
        for _ in range(3):
            worker.ask("train", rows=rows)
        values[name] = [worker.ask("peak_memory") / 1e9]
        worker.close()
    return values


def _speed(worker: Worker, method: str, rows: list[list[int]], tokens: int) -> Callable[[], float]:
    """A turn: tokens per second."""
    return lambda: tokens / worker.ask(method, rows=rows)["seconds"]


def _step(worker: Worker, rows: list[list[int]]) -> Callable[[], float]:
    """A turn of a training step, in which the last token of a row is a target only."""
    return _speed(worker, "train", rows, len(rows) * (len(rows[0]) - 1))
