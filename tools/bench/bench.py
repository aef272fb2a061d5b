"""How a round of a row goes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import blocks
import conversion
import preparing
import several
from driver import ContenderError, Worker, environment
from generating import Generating
from models import MODELS
from prompts import random_rows
from rows import ROWS
from stand import Result
from training import Training, step

HELP = {
    "lm": ["-m", "lm_core.cli", "pretrain", "gpt2", "--help"],
    "transformers": ["-m", "transformers.cli.transformers", "--help"],
}


class Bench(Generating, Training):
    """Measures rows; see Stand for the arguments."""

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

    def _with_and_without_blocks(
        self, stack: ExitStack, model: str, length: int, trains: bool
    ) -> tuple[dict[str, Worker], dict[str, str]]:
        """Ours twice; and why the second is not there where it would not fit."""
        workers, needed = {}, blocks.bytes_without(MODELS[model], length, trains)
        for name, own in (("lm", True), (blocks.WITHOUT, False)):
            if own or needed <= blocks.MOST:
                worker = self.ours(stack, model, blocks=own)
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
            writer, trainer = self.ours(stack, model), self.ours(stack, model)
            trainer.ask("start_training", learning_rate=1e-4, variant="plain")
            trainer.ask("train", rows=rows)
            writer.ask("prepare_text", folder=str(self.scratch / "text"))
            turns = {
                "lm": lambda: writer.ask("preprocess", folder=str(self.scratch / "text")),
                "lm, training": step(trainer, rows),
            }
            return {"values": self.in_turn(turns)}
