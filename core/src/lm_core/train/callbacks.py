"""What happens around the steps of a run: lines or a bar, metric files, checkpoints."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lm_core.checkpoint import atomic
from lm_core.checkpoint.saved import STATE, checkpoints
from lm_core.errors import CheckpointError, ConfigError
from lm_core.heartbeat import beat
from lm_core.log import clock, get_logger, progress

if TYPE_CHECKING:
    from lm_core.train.loop import TrainLoop
    from lm_core.train.state import Snapshot

log = get_logger(__name__)

Record = dict[str, Any]
"""What is known of a step ("step", "loss", ...) or of an evaluation ("step", "eval_loss", ...)."""


class Callback:
    """Called by the loop; every method may be left out."""

    def begin(self, loop: TrainLoop) -> None:
        """Before the first step."""

    def after_step(self, loop: TrainLoop, record: Record) -> None:
        """After every step."""

    def after_evaluation(self, loop: TrainLoop, record: Record) -> None:
        """After every evaluation."""

    def end_step(self, loop: TrainLoop) -> None:
        """After a step and the evaluation that may follow it."""

    def finish(self, loop: TrainLoop) -> None:
        """After the last step of a run that ended well or was asked to stop."""

    def close(self) -> None:
        """Always, at the very end."""


_SCORES = {
    "eval_loss": ("loss", ".4f"),
    "eval_ppl": ("perplexity", ".2f"),
    "eval_accuracy": ("accuracy", ".4f"),
}


def _speed(record: Record) -> str:
    """The speed of a step: "1234 tokens/s"."""
    name = next(name for name in record if name.endswith("_per_second"))
    return f"{record[name]:.0f} {name.removesuffix('_per_second')}/s"


class LossMonitor(Callback):
    """Loss, learning rate, gradient norm, speed, time left: a bar on a terminal, lines elsewhere.

    Args:
        every: steps between two lines; a line shows the mean loss since the one before.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.losses: list[float] = []
        self.bar: Any = None

    def begin(self, loop: TrainLoop) -> None:
        if sys.stderr.isatty():
            self.bar = progress(
                total=loop.total_steps, desc="train", unit="step", initial=loop.steps
            )

    def after_step(self, loop: TrainLoop, record: Record) -> None:
        if math.isfinite(record["loss"]):
            self.losses.append(record["loss"])
        if self.bar is not None:
            self.bar.set_postfix_str(self._numbers(record, record["loss"]), refresh=False)
            self.bar.update(1)
        elif loop.steps % self.every == 0 or loop.steps == loop.total_steps:
            self._line(loop, record)

    def _line(self, loop: TrainLoop, record: Record) -> None:
        share = 100 * loop.steps // loop.total_steps
        mean = sum(self.losses) / len(self.losses) if self.losses else record["loss"]
        self.losses = []
        log.info(
            "step %d/%d (%d %%), epoch %d/%d, %s, %s left",
            loop.steps, loop.total_steps, share, record["epoch"], loop.epochs,
            self._numbers(record, mean), clock(loop.seconds_left()),
        )  # fmt: skip

    @staticmethod
    def _numbers(record: Record, loss: float) -> str:
        skipped = f", skipped (loss scale {record['loss_scale']:g})" if record["skipped"] else ""
        return (
            f"loss {loss:.4f}, lr {record['lr']:.3g}, grad norm {record['grad_norm']:.3f}, "
            f"{_speed(record)}{skipped}"
        )

    def after_evaluation(self, loop: TrainLoop, record: Record) -> None:
        scores = [
            f"{word} {record[name]:{digits}}"
            for name, (word, digits) in _SCORES.items()
            if name in record
        ]
        log.info("step %d: held-out %s", record["step"], ", ".join(scores))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class MetricsFile(Callback):
    """One JSON object a line for every step and evaluation, written through at once.

    A disk that is full costs lines of this file; it does not end training.

    Args:
        path: the file. A resumed run finds in it what was known at its checkpoint; any other run
            starts it anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.failed = False

    def begin(self, loop: TrainLoop) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a" if loop.steps else "w", encoding="utf-8", buffering=1)

    def after_step(self, loop: TrainLoop, record: Record) -> None:
        assert self.file is not None
        known = {name: _finite_or_none(value) for name, value in record.items()}
        try:
            self.file.write(json.dumps(known) + "\n")
        except OSError as error:
            self._warn(error)

    after_evaluation = after_step

    def close(self) -> None:
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self.failed:
            log.error("%s: lines are missing: %s; training goes on", self.path, error.strerror)
        self.failed = True


class TensorBoard(Callback):
    """The same numbers for TensorBoard.

    Args:
        directory: where the event files go.
        every: steps between two points.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, every: int = 1) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
        except ImportError as error:
            raise ConfigError(
                "callbacks: SummaryMonitor needs tensorboardX, which is not installed; "
                "run pip install 'lm-core[tensorboard]' or leave the callback out"
            ) from error
        self.every = every
        self.writer = SummaryWriter(str(directory))

    def after_step(self, loop: TrainLoop, record: Record) -> None:
        if record["step"] % self.every == 0:
            self._write(record)

    def after_evaluation(self, loop: TrainLoop, record: Record) -> None:
        self._write(record)

    def _write(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class CheckpointMonitor(Callback):
    """Saves checkpoints `<prefix>-<step>`, and one at the end or when the run is asked to stop.

    Each is read back after it was written. A checkpoint on the way that cannot be written is
    reported and training goes on; the older ones are still there, since old ones are deleted only
    for a new one that was read back. The last one must be written.

    Args:
        folder: where the checkpoints go.
        prefix: how their names begin.
        every_steps: steps between two; 0: only at the end.
        every_seconds: seconds between two, beside the steps; 0: never by time.
        keep: how many are kept.
        last: the checkpoint that the run goes on from; a run that was complete needs no other.
        background: a thread writes those on the way, from a copy in host memory. There is one at a
            time: the next save waits for it, and so does the end of the run.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str = "CKP",
        *,
        every_steps: int = 0,
        every_seconds: float = 0.0,
        keep: int = 5,
        last: Path | None = None,
        background: bool = False,
    ) -> None:
        self.folder, self.prefix, self.keep = folder, prefix, keep
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.last = last
        self._time = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._writing: tuple[int, Future[None]] | None = None
        self._pending: Path | None = None

    def begin(self, loop: TrainLoop) -> None:
        atomic.clear_leftovers(self.folder)
        self._time = time.monotonic()

    def end_step(self, loop: TrainLoop) -> None:
        if self._writing is not None and self._writing[1].done():
            self._wait()
        due = self.every_steps > 0 and loop.steps % self.every_steps == 0
        if not due and self.every_seconds > 0:
            due = loop.agreement.any(time.monotonic() - self._time >= self.every_seconds)
        # The last step's checkpoint is written by `finish`, which reports a failure as an error.
        if due and loop.steps < loop.total_steps:
            self._save_on_the_way(loop)

    def finish(self, loop: TrainLoop) -> None:
        self._wait()
        path = self._path(loop)
        # All or none go on to the question of `_prune_if_all`: where a save on the way failed at
        # this very step, some ranks have it and others have not.
        if loop.agreement.all(self.last == path):
            return
        try:
            if self.last != path:
                self._write(loop.state.snapshot(copy=False), path)
        finally:
            self._prune_if_all(loop, self.last == path)

    def close(self) -> None:
        self._wait()
        if self._thread is not None:
            self._thread.shutdown()

    def _save_on_the_way(self, loop: TrainLoop) -> None:
        path = self._path(loop)
        self._wait()
        if self._thread is None:
            with _reported(loop.steps):
                self._write(loop.state.snapshot(copy=False), path)
            self._prune_if_all(loop, self.last == path)
        else:
            if self._pending is not None:
                self._prune_if_all(loop, self.last == self._pending)
            self._pending = path
            snapshot = loop.state.snapshot()
            self._writing = loop.steps, self._thread.submit(self._write, snapshot, path)
        self._time = time.monotonic()

    def _prune_if_all(self, loop: TrainLoop, written: bool) -> None:
        """Deletes old checkpoints if every rank has the new one: a part alone is worth nothing."""
        if loop.agreement.all(written) and self.last is not None:
            self._prune(self.last)

    def _wait(self) -> None:
        """For the checkpoint that is being written, if there is one."""
        if self._writing is not None:
            (step, future), self._writing = self._writing, None
            with _reported(step):
                future.result()

    def _write(self, snapshot: Snapshot, path: Path) -> None:
        """Writes a checkpoint and reads it back."""
        start = time.monotonic()
        snapshot.write(path)
        atomic.check(path)
        self.last = path
        log.info("saved %s (%.1f s)", path, time.monotonic() - start)
        beat()

    def _path(self, loop: TrainLoop) -> Path:
        return self.folder / f"{self.prefix}-{loop.steps}"

    def _prune(self, new: Path) -> None:
        others = [path for path in checkpoints(self.folder, STATE) if path != new]
        old = [path for path in others if path.name.startswith(f"{self.prefix}-")]
        for path in old[max(0, self.keep - 1) :]:
            try:
                atomic.remove_directory(path)
            except OSError as error:
                log.warning("%s: cannot be deleted: %s; delete it yourself", path, error.strerror)


@contextmanager
def _reported(step: int) -> Iterator[None]:
    """Says that a checkpoint was not saved, and goes on."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        why = "; ".join(str(error).splitlines())
        log.error("CHECKPOINT NOT SAVED at step %d: %s; training goes on", step, why)


def _finite_or_none(value: Any) -> Any:
    """JSON has no infinity."""
    return value if not isinstance(value, float) or math.isfinite(value) else None
