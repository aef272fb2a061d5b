"""Steps whose loss or gradient is not finite: written down with their records, then an end or not.

Such a step never changes the weights: the compiled step itself sees to that. A gradient that a
smaller loss scale may mend is no such case; the loss scale answers it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.errors import LmError
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.data.pipeline import BatchIterator
    from lm_core.train.step import StepResult

FILE = "nonfinite.jsonl"
IN_A_ROW = 10
"""After so many skipped steps, one after the other, it is not the data."""

_SHOWN = 16

log = get_logger(__name__)


class TrainingError(LmError):
    """Training cannot go on."""


class NonFinite:
    """What is done about steps whose loss or gradient is not finite.

    Args:
        data: names the records.
        skip: go on after such a step, up to IN_A_ROW of them; False: stop at the first.
        path: gets a line of JSON for each, with the records; None: nowhere.
    """

    def __init__(self, data: BatchIterator, skip: bool = False, path: Path | None = None) -> None:
        self.data, self.skip, self.path = data, skip, path
        self.in_a_row = 0

    def begin(self, steps: int) -> None:
        """Drops what the file says of steps that are yet to come, again or in a new run."""
        if self.path is None or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if _step(line) <= steps)
        if kept:
            self.path.write_text(kept, encoding="utf-8")
        else:
            self.path.unlink()

    def check(self, step: int, result: StepResult, place: tuple[int, int], mendable: bool) -> bool:
        """Whether the step's loss and gradient are as they must be.

        Args:
            step: the number of the step, counted from 1.
            result: what it gave.
            place: epoch and batch of its records.
            mendable: a smaller loss scale may make the gradient finite.

        Returns:
            False for a step that is left out; True also for one that the loss scale answers.

        Raises:
            TrainingError: the step ends the run.
        """
        finite = math.isfinite(result.loss)
        if finite and not (result.skipped and not mendable):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        name, value = ("gradient norm", result.grad_norm) if finite else ("loss", result.loss)
        records = self.data.record_ids(*place).tolist()
        where = self._write(step, name, value, records)
        shown = ", ".join(map(str, records[:_SHOWN])) + (", ..." if records[_SHOWN:] else "")
        what = f"step {step}: the {name} is {value}"
        if not self.skip or self.in_a_row >= IN_A_ROW:
            raise TrainingError(
                f"{what}{self._count()}; the weights were not changed by this step (records "
                f"{shown}){where}; lower lr_schedule.learning_rate, warm up for longer or clip to "
                f"a smaller runner_wrapper.max_grad_norm, and resume from the last checkpoint"
                f"{'' if self.skip else '; runner_wrapper.nan_policy=skip leaves such steps out'}"
            )
        log.warning("%s; the step is left out (records %s)%s", what, shown, where)
        return False

    def _count(self) -> str:
        return f", like that of the {self.in_a_row - 1} steps before it" if self.skip else ""

    def _write(self, step: int, name: str, value: float, records: list[int]) -> str:
        """Adds a line to the file. Returns a remark about it for the message."""
        if self.path is None:
            return ""
        known = {
            "step": step,
            "what": name,
            "value": str(value),
            "records": [self.data.dataset.locate(record) for record in records],
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known) + "\n")
        except OSError as error:
            return f", which {self.path} cannot take ({error.strerror})"
        return f", which are in {self.path}"


def _step(line: str) -> float:
    """The step of a line of the file; a line that a killed run left unfinished is of no step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
