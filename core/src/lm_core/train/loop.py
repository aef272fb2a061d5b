"""The loop around the steps: epochs, evaluation on the way, stopping."""

from __future__ import annotations

import gc
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_core.errors import DataError
from lm_core.heartbeat import beat
from lm_core.log import get_logger
from lm_core.train.agreement import Agreement
from lm_core.train.batch import IGNORED, Columns, fill_rows, split_rows
from lm_core.train.callbacks import Callback, CheckpointMonitor, Record
from lm_core.train.nonfinite import NonFinite
from lm_core.train.signals import StopRequest

if TYPE_CHECKING:
    from lm_core.train.schedule import Schedule
    from lm_core.train.state import TrainState
    from lm_core.train.step import MicroBatch, StepResult

log = get_logger(__name__)

_RECENT = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, and what happens when.

    Attributes:
        total_steps: steps of the whole run, those before a resume included.
        rows: records of a step on this rank; a short last batch is filled up with untrained rows.
        eval_steps: steps between two evaluations; None: none by steps.
        eval_epochs: epochs between two evaluations; None: none by epochs.
        skip_nonfinite: leave out steps whose loss or gradient is not finite, instead of stopping.
        nonfinite: the file that lists these steps and their records; None: none.
        unit: what is trained and counted: "tokens", or "records" of which each has one class.
    """

    total_steps: int
    rows: int
    eval_steps: int | None = None
    eval_epochs: int | None = None
    skip_nonfinite: bool = False
    nonfinite: Path | None = None
    unit: str = "tokens"


class TrainLoop:
    """Trains until the plan is done or a stop is asked for.

    Args:
        state: model, step, data and what else a checkpoint holds.
        schedule: the learning rate.
        plan: how long.
        prepare: columns of records to input_ids and labels.
        callbacks: called in this order.
        evaluate: gives scores by name, `{"loss": ..., "PPL": ...}`; None: there is no evaluation.

    Attributes:
        total_steps: steps of the whole run.
        epochs: epochs of the whole run.
        stopped_by: the signal that ended `run`, 0 if it came to its end.
    """

    def __init__(
        self,
        state: TrainState,
        schedule: Schedule,
        plan: Plan,
        prepare: Callable[[Columns], MicroBatch],
        callbacks: Sequence[Callback] = (),
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.state, self.schedule, self.plan, self.prepare = state, schedule, plan, prepare
        self.callbacks, self.evaluate = list(callbacks), evaluate
        self.agreement = Agreement(state.model.context)
        self.nonfinite = NonFinite(state.data, plan.skip_nonfinite, plan.nonfinite)
        self.total_steps = plan.total_steps
        self.epochs = -(-plan.total_steps // state.data.steps_per_epoch)
        self.stopped_by = 0
        # Durations of the last steps, without the first, in which the graph is compiled.
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self._compiled = False

    @property
    def steps(self) -> int:
        """Steps that are done, those before a resume included."""
        return self.state.step.steps

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that was written last; None if there was none."""
        saved = [item.last for item in self.callbacks if isinstance(item, CheckpointMonitor)]
        return saved[-1] if saved else None

    def seconds_left(self) -> float:
        """An estimate from the last steps."""
        if not self._durations:
            return 0.0
        return sum(self._durations) / len(self._durations) * (self.total_steps - self.steps)

    def run(self) -> None:
        """Trains.

        Raises:
            TrainingError: the loss or a gradient is not finite, or that of many steps in a row.
            DataError: a record has no trained token, or an id that the model does not know.
            CheckpointError: the last checkpoint cannot be written.
        """
        with StopRequest("finishing this step and saving, then stopping") as stop:
            try:
                self.nonfinite.begin(self.steps)
                for callback in self.callbacks:
                    callback.begin(self)
                stopping = False
                while self.steps < self.total_steps and not stopping:
                    stopping = self._epoch(stop)
                if self.steps < self.total_steps:
                    # Where another rank was asked, this one stops with it.
                    self.stopped_by = stop.number or signal.SIGTERM
                for callback in self.callbacks:
                    callback.finish(self)
            finally:
                for callback in self.callbacks:
                    callback.close()

    def _epoch(self, stop: StopRequest) -> bool:
        """The rest of an epoch. Returns whether any rank was asked to stop."""
        data = self.state.data
        place, start = (data.epoch, data.step), time.perf_counter()
        for columns in data:
            result, rate = self._step(columns, place)
            self._report(result, rate, place[0], time.perf_counter() - start)
            beat()
            stopping = self.agreement.any(bool(stop))
            if not stopping:
                self._evaluate_if_due()
            stop.renew()
            for callback in self.callbacks:
                callback.end_step(self)
            if stopping or self.steps >= self.total_steps:
                return stopping
            place, start = (data.epoch, data.step), time.perf_counter()
        return False

    def _step(self, columns: Columns, place: tuple[int, int]) -> tuple[StepResult, float]:
        batch = self.prepare(columns)
        self._check_trained(batch[1], place)
        step = self.state.step
        parts = split_rows(fill_rows(batch, self.plan.rows), step.accumulation)
        rate = self.schedule(self.steps)
        if not self._compiled:
            # A dead network that is collected while this one compiles makes MindSpore forget the
            # key of the new graph, and compile it again at the second step.
            gc.collect()
            log.info("compiling the training step (once; a large model takes minutes)")
        scale, start = self.state.loss_scale, time.perf_counter()
        result = step(parts, rate, scale.value)
        if not self._compiled:
            log.info("compiled and ran in %.1f s", time.perf_counter() - start)
        if self.nonfinite.check(self.steps, result, place, mendable=not scale.exhausted):
            scale.update(result.skipped)
        return result, rate

    def _check_trained(self, labels: np.ndarray, place: tuple[int, int]) -> None:
        empty = np.flatnonzero((labels == IGNORED).all(axis=1))
        if empty.size:
            data = self.state.data
            record = int(data.record_ids(*place)[empty[0]])
            raise DataError(
                f"{data.dataset.locate(record)}: has no trained token, its attention_mask or "
                f"labels exclude all; every record must have one; write the records without it"
            )

    def _report(self, result: StepResult, rate: float, epoch: int, seconds: float) -> None:
        if self._compiled:
            self._durations.append(seconds)
        self._compiled = True
        record: Record = {
            "step": self.steps,
            "epoch": epoch + 1,
            "loss": result.loss,
            "lr": rate,
            "grad_norm": result.grad_norm,
            self.plan.unit: result.tokens,
            f"{self.plan.unit}_per_second": result.tokens / seconds,
            "loss_scale": self.state.loss_scale.value,
            "skipped": result.skipped,
        }
        for callback in self.callbacks:
            callback.after_step(self, record)

    def _evaluate_if_due(self) -> None:
        if self.evaluate is None or not self._is_due():
            return
        found = self.evaluate()
        record = {"step": self.steps} | {f"eval_{n.lower()}": v for n, v in found.items()}
        for callback in self.callbacks:
            callback.after_evaluation(self, record)

    def _is_due(self) -> bool:
        plan = self.plan
        if plan.eval_steps and self.steps % plan.eval_steps == 0:
            return True
        if not plan.eval_epochs:
            return False
        epochs, rest = divmod(self.steps, self.state.data.steps_per_epoch)
        return rest == 0 and epochs % plan.eval_epochs == 0
