"""Answers of a model that are appended line by line, so that a run goes on where it was stopped.

An answer follows from the model, the settings, its prompt and its number among equal prompts, and
from nothing else: neither from the batch that it is computed in nor from what was done before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_core.checkpoint import atomic
from lm_core.checkpoint.source import read_json
from lm_core.data import jsonlines
from lm_core.errors import ConfigError
from lm_core.heartbeat import beat
from lm_core.log import progress

if TYPE_CHECKING:
    import numpy as np

    from lm_core.pipeline import TextGenerationPipeline

Records = list[dict[str, Any]]


class Journal:
    """A file of answers, and beside it one with the settings that they follow from.

    Args:
        path: NAME.jsonl; the settings are in NAME.settings.json.
        fields: texts that each record has.
        facts: the settings.

    Raises:
        ConfigError: the answers that are there follow from other settings.
    """

    def __init__(self, path: Path, fields: Sequence[str], facts: Mapping[str, Any]) -> None:
        self.path, self.fields, self.facts = path, fields, facts
        self.settings = path.with_name(f"{path.stem}.settings.json")
        self._check()

    def _check(self) -> None:
        if self.settings.exists():
            before = read_json(self.settings)
            different = [
                f"{name} was {before.get(name)!r} and is {self.facts.get(name)!r}"
                for name in {**before, **self.facts}
                if before.get(name) != self.facts.get(name)
            ]
        else:
            different = [f"{self.settings.name} is missing"] if self.read() else []
        if different:
            raise ConfigError(
                f"output_dir: {self.path.parent} holds {self.path.stem} of another run "
                f"({', '.join(different)}); must be of this one to go on; choose another "
                f"--output_dir, or delete {self.path.name} and {self.settings.name} there"
            )

    def read(self) -> list[jsonlines.Record]:
        """What is there, but for a last line that was torn.

        Raises:
            DataError: the lines are no such records.
        """
        return jsonlines.read(self.path, self.fields, torn=True) if self.path.exists() else []

    def write(
        self,
        batches: Iterable[Records],
        *,
        rank: int,
        unit: str,
        done: int,
        total: int,
        note: Callable[[Records], str] | None = None,
    ) -> None:
        """Appends batches as they come; all ranks compute them, the first one writes.

        Args:
            batches: of records.
            rank: of this process.
            unit: what a record is, for the progress bar.
            done: records that were there.
            total: records that there will be.
            note: says something about the answers so far, given each batch.
        """
        if rank > 0:
            for _ in batches:
                beat()
            return
        with (
            jsonlines.Writer(self.path) as file,
            progress(total=total, desc="generate", unit=unit, initial=done) as bar,
        ):
            with atomic.new_file(self.settings) as scratch:
                scratch.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
            for records in batches:
                file.write(records)
                if note is not None:
                    bar.set_postfix_str(note(records), refresh=False)
                bar.update(len(records))
                beat()


class Task(NamedTuple):
    """A prompt to answer."""

    key: Any
    """Whose prompt it is, for the caller."""
    ids: list[int]
    copy: int = 0
    """How many tasks with this prompt come before it: each is answered by draws of its own."""


def answers(
    generator: TextGenerationPipeline, tasks: Sequence[Task], size: int, seed: int, **options: Any
) -> Iterator[list[tuple[Task, np.ndarray]]]:
    """The prompts with their answers, `size` at a time.

    A row's draws follow from a seed and its prompt, so each copy has a seed of its own and a batch
    holds one copy of prompts only; which other rows it holds changes nothing.

    Args:
        generator: answers.
        tasks: in any order.
        size: prompts computed at once.
        seed: of the run.
        options: see `TextGenerationPipeline.continue_ids`.
    """
    for copy in sorted({task.copy for task in tasks}):
        chosen = [task for task in tasks if task.copy == copy]
        chosen.sort(key=lambda task: len(task.ids))  # alike in length, little padding
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            ids = [task.ids for task in batch]
            found = generator.continue_ids(ids, batch_size=size, seed=_seed(seed, copy), **options)
            yield list(zip(batch, found, strict=True))


def _seed(seed: int, copy: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {copy}".encode(), digest_size=8).digest())
