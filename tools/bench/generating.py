"""How a round of reading prompts and continuing them goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

import probe
import serving
from driver import Worker
from models import MODELS
from prompts import check_agreement, random_rows
from stand import Result, Stand

GENERATE = "lm, generate"


class Generating(Stand):
    """Measures rows in which nobody trains."""

    def generation(self, model: str, batch: int, prompt: int, new: int) -> Result:
        """Tokens per second: new ones, or prompt tokens where only one is new."""
        prompts = random_rows(model, batch, prompt, seed=prompt)
        counted = batch * (new if new > 1 else prompt)
        read = MODELS[model].weight_bytes * new
        with ExitStack() as stack:
            workers = self.workers(stack, model)
            # Graphs are compiled and libraries warm themselves up, and all must agree.
            answers = {n: w.ask("decode", prompts=prompts, new=new) for n, w in workers.items()}
            if MODELS[model].same_tokens:
                check_agreement(answers)

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
            worker = self.ours(stack, model)
            port = worker.ask("serve", batch=serving.BATCH, longest=prompt + new)
            parts = [prompts[n : n + serving.BATCH] for n in range(0, clients, serving.BATCH)]
            turns = {
                "lm": lambda: serving.seconds(port, prompts, new),
                GENERATE: lambda: sum(
                    worker.ask("decode", prompts=part, new=new)["seconds"] for part in parts
                ),
            }
            for turn in turns.values():
                turn()
            found = self.in_turn(turns)
        return {"values": {n: [clients * new / one for one in own] for n, own in found.items()}}

    def exported(self, model: str, prompt: int, new: int) -> Result:
        """New tokens per second of a row, by graphs in files and by `generate`."""
        prompts = random_rows(model, 1, prompt, seed=prompt)
        with ExitStack() as stack:
            workers = {"lm": self.ours(stack, model), GENERATE: self.ours(stack, model)}
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                graphs = f"{folder}/mindir"
                workers["lm"].ask("export", folder=graphs, length=prompt + new)
                workers["lm"].ask("load_graphs", folder=graphs)
            answers = {n: w.ask("decode", prompts=prompts, new=new) for n, w in workers.items()}
            check_agreement(answers)

            def turn(worker: Worker) -> Callable[[], float]:
                return lambda: new / worker.ask("decode", prompts=prompts, new=new)["seconds"]

            found = self.in_turn({name: turn(worker) for name, worker in workers.items()})
        return {"values": found}

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
        turns = {name: speed(w, "forward", rows, tokens) for name, w in workers.items()}
        return self.in_turn(turns)

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


def speed(worker: Worker, method: str, rows: list[list[int]], tokens: int) -> Callable[[], float]:
    """A turn: tokens per second."""
    return lambda: tokens / worker.ask(method, rows=rows)["seconds"]
