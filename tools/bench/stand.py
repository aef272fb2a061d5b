"""Who takes part: models as files, workers that have read them, and turns in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from driver import ContenderError, Worker
from models import MODELS
from weights import Known, Tensors

Result = dict[str, Any]


class Stand:
    """What every measurement starts from.

    Args:
        scratch: an empty folder.
        contenders: "lm" and others.
        rounds: how often everybody has a turn.
    """

    def __init__(self, scratch: Path, contenders: list[str], rounds: int) -> None:
        self.scratch, self.contenders, self.rounds = scratch, contenders, rounds
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def folder(self, model: str, name: str = "lm") -> Path:
        """Where a contender reads a model."""
        own, folder = MODELS[model], self.scratch / model
        peer = own.peer()
        peers = folder if peer is own else folder / "peers"
        if not folder.exists():
            tensors = own.draw()
            own.write(folder, tensors)
            theirs = own.for_peer(tensors)
            if peer is not own:
                peer.write(peers, theirs)
            if "llama.cpp" in self.contenders:
                self._write_gguf(peer, peers, theirs)
        return folder if name == "lm" else peers

    def _write_gguf(self, peer: Known, folder: Path, tensors: Tensors) -> None:
        try:
            peer.make_gguf(folder, tensors)
        except ImportError as error:
            self.missing["llama.cpp"] = str(error)

    def worker(self, stack: ExitStack, name: str, model: str, **options: Any) -> Worker | None:
        """A contender that has read a model; None where its library is not installed."""
        folder = self.folder(model, name)
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
        worker.ask("load", folder=str(folder), **options)
        return worker

    def ours(self, stack: ExitStack, model: str, **options: Any) -> Worker:
        """This project, which is always there."""
        worker = self.worker(stack, "lm", model, **options)
        assert worker is not None
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
