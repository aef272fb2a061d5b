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

import numpy as np
import probe
import several
import weights
from driver import ContenderError, Worker, environment
from rows import ROWS

Result = dict[str, Any]
WEIGHT_BYTES = 4 * (124_439_808 - 1024 * 768)
"""What a decoding step reads of GPT-2 124M: all weights but the table of positions."""
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
        self._folder: Path | None = None

    def measure(self, name: str) -> Result:
        """A row: `{"values": {contender: [one number a round]}, ...}`.

        Raises:
            ContenderError: a contender failed, or contenders compute different things.
        """
        row = ROWS[name]
        found = getattr(self, row.measure)(**row.arguments)
        return {
            "title": row.title, "unit": row.unit, "higher": row.higher, "targets": row.targets,
            "versions": dict(self.versions), "missing": dict(self.missing), **found,
        }  # fmt: skip

    def folder(self) -> str:
        """The model that everybody reads."""
        if self._folder is None:
            self._folder = self.scratch / "gpt2"
            tensors = weights.make(self._folder)
            if "llama.cpp" in self.contenders:
                try:
                    weights.make_gguf(self._folder, tensors)
                except ImportError as error:
                    self.missing["llama.cpp"] = str(error)
        return str(self._folder)

    def worker(self, stack: ExitStack, name: str) -> Worker | None:
        """A contender with the model read; None where its library is not installed."""
        folder = self.folder()
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
        worker.ask("load", folder=folder)
        return worker

    def workers(self, stack: ExitStack, names: list[str]) -> dict[str, Worker]:
        """All contenders that are there."""
        found = {name: self.worker(stack, name) for name in names}
        return {name: worker for name, worker in found.items() if worker is not None}

    def in_turn(self, turns: dict[str, Callable[[], Any]]) -> list[dict[str, Any]]:
        """Rounds in which everybody has a turn, each round begun by another."""
        names, rounds = list(turns), []
        for number in range(self.rounds):
            order = names[number % len(names) :] + names[: number % len(names)]
            results = {}
            for name in order:
                time.sleep(0.2)  # the threads of the one before go to sleep
                results[name] = turns[name]()
            rounds.append(results)
        return rounds

    def generation(self, batch: int, prompt: int, new: int) -> Result:
        """Tokens per second: new ones, or prompt tokens where only one is new."""
        rng = np.random.default_rng(prompt)
        prompts = rng.integers(0, 50257, (batch, prompt)).tolist()
        counted = batch * (new if new > 1 else prompt)
        with ExitStack() as stack:
            workers = self.workers(stack, self.contenders)
            # Graphs are compiled and libraries warm themselves up, and all must agree.
            _agree({n: w.ask("decode", prompts=prompts, new=new) for n, w in workers.items()})

            def turn(worker: Worker) -> Callable[[], dict[str, float]]:
                def run() -> dict[str, float]:
                    before = probe.read_bandwidth()
                    seconds = worker.ask("decode", prompts=prompts, new=new)["seconds"]
                    bandwidth = (before + probe.read_bandwidth()) / 2
                    share = WEIGHT_BYTES * new / seconds / bandwidth
                    return {"value": counted / seconds, "share": share}

                return run

            rounds = self.in_turn({name: turn(worker) for name, worker in workers.items()})
        found = {"values": _by_contender(rounds, "value")}
        return found if new == 1 else {**found, "shares": _by_contender(rounds, "share")}

    def _trainers(self, stack: ExitStack) -> dict[str, Worker]:
        trainers = {}
        for name in self.contenders:
            for variant in ("plain", "fused") if name == "transformers" else ("plain",):
                if name == "llama.cpp" or (worker := self.worker(stack, name)) is None:
                    continue
                worker.ask("start_training", learning_rate=1e-4, variant=variant)
                trainers[f"{name}, {variant}" if name == "transformers" else name] = worker
        return trainers

    def training(self) -> Result:
        """Tokens per second of a training step."""
        rows = _training_rows()
        with ExitStack() as stack:
            trainers = self._trainers(stack)
            losses = [
                [worker.ask("train", rows=rows)["loss"] for _ in range(2)]
                for worker in trainers.values()
            ]
            if np.ptp(losses, axis=0).max() > 2e-3:
                raise ContenderError(f"the losses of the first steps differ: {losses}")
            rounds = self._train_in_turn(trainers)
        return {"values": {name: [r[name] for r in rounds] for name in trainers}}

    def _tuners(self, stack: ExitStack) -> dict[str, Worker]:
        tuners = {}
        for name, variant in (("lm", "lora"), ("lm, full", "plain")):
            worker = self.worker(stack, "lm")
            assert worker is not None
            worker.ask("start_training", learning_rate=1e-4, variant=variant)
            tuners[name] = worker
        return tuners

    def lora(self) -> Result:
        """Tokens per second of a step that trains an adapter, and of one that trains all."""
        with ExitStack() as stack:
            tuners = self._tuners(stack)
            rounds = self._train_in_turn(tuners)
        return {"values": {name: [r[name] for r in rounds] for name in tuners}}

    def lora_memory(self) -> Result:
        """Peak memory of processes that train an adapter, or all weights, for three steps."""
        with ExitStack() as stack:
            return {"values": _peaks(self._tuners(stack))}

    def _train_in_turn(self, trainers: dict[str, Worker]) -> list[dict[str, Any]]:
        rows = _training_rows()
        for worker in trainers.values():
            worker.ask("train", rows=rows)
        return self.in_turn(
            {
                name: lambda worker=worker: 1024 / worker.ask("train", rows=rows)["seconds"]
                for name, worker in trainers.items()
            }
        )

    def training_memory(self) -> Result:
        """Peak memory of a process that reads the model and trains three steps."""
        with ExitStack() as stack:
            return {"values": _peaks(self._trainers(stack))}

    def decode_memory(self) -> Result:
        """Peak memory of a process that reads the model and decodes 64 tokens."""
        values = {}
        prompts = np.random.default_rng(1).integers(0, 50257, (1, 32)).tolist()
        with ExitStack() as stack:
            for name, worker in self.workers(stack, self.contenders).items():
                worker.ask("decode", prompts=prompts, new=64)
                values[name] = [worker.ask("peak_memory") / 1e9]
        return {"values": values}

    def first_token(self) -> Result:
        """Seconds from the start of a process: imports, reading the model, compiling."""
        prompts = np.random.default_rng(1).integers(0, 50257, (1, 32)).tolist()
        self.folder()

        def turn(name: str) -> Callable[[], float]:
            def run() -> float:
                with ExitStack() as stack:
                    start = time.perf_counter()
                    worker = self.worker(stack, name)
                    if worker is None:
                        return float("nan")
                    worker.ask("decode", prompts=prompts, new=1)
                    return time.perf_counter() - start

            return run

        rounds = self.in_turn({name: turn(name) for name in self.contenders})
        present = [name for name in self.contenders if name not in self.missing]
        return {"values": {name: [r[name] for r in rounds] for name in present}}

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
        rounds = self.in_turn({name: turn(name) for name in names})
        return {"values": {name: [r[name] for r in rounds] for name in names}}

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

    def several(self, degrees: dict[str, int]) -> Result:
        """Seconds of a training step of several processes, and of one with the same batch."""
        folder, numbers = self.scratch / f"several-{'-'.join(degrees)}", count()
        several.prepare(folder)

        def turn(wanted: dict[str, int]) -> Callable[[], float]:
            return lambda: several.step_seconds(folder, wanted, f"run-{next(numbers)}")

        with Worker("lm") as worker:
            self.versions["lm"] = worker.ask("version")
        rounds = self.in_turn({"lm": turn(degrees), "lm, one process": turn({})})
        return {"values": {name: [r[name] for r in rounds] for name in rounds[0]}}

    def preprocessing(self) -> Result:
        """Tokens per second from text files to records, and of a training step beside it."""
        rows = _training_rows()
        with ExitStack() as stack:
            writer = self.worker(stack, "lm")
            trainer = self.worker(stack, "lm")
            assert writer is not None and trainer is not None
            trainer.ask("start_training", learning_rate=1e-4, variant="plain")
            trainer.ask("train", rows=rows)
            writer.ask("prepare_text", folder=str(self.scratch / "text"))
            rounds = self.in_turn(
                {
                    "lm": lambda: writer.ask("preprocess", folder=str(self.scratch / "text")),
                    "lm, training": lambda: 1024 / trainer.ask("train", rows=rows)["seconds"],
                }
            )
        return {"values": {name: [r[name] for r in rounds] for name in rounds[0]}}


def _peaks(trainers: dict[str, Worker]) -> dict[str, list[float]]:
    """Gigabytes after three steps, one process after the other."""
    values = {}
    for name, worker in trainers.items():
        for _ in range(3):
            worker.ask("train", rows=_training_rows())
        values[name] = [worker.ask("peak_memory") / 1e9]
        worker.close()
    return values


def _training_rows() -> list[list[int]]:
    return np.random.default_rng(2).integers(0, 50257, (4, 257)).tolist()


def _by_contender(rounds: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    return {name: [results[name][key] for results in rounds] for name in rounds[0]}


def _agree(answers: dict[str, dict[str, Any]]) -> None:
    """The first tokens of all rows are the same; later ones may part at a near tie."""
    first = {name: [row[:8] for row in answer["tokens"]] for name, answer in answers.items()}
    if len({str(rows) for rows in first.values()}) > 1:
        raise ContenderError(f"the contenders compute different tokens: {first}")
