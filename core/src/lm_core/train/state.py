"""What a training checkpoint holds, and finding the one to go on from.

A directory `<prefix>-<step>` is complete or absent (`checkpoint.atomic`) and holds

    model.safetensors, config.json   a model directory like any other, for from_pretrained; or, with
                                     save_trainable_params, an adapter alone (lm_core.peft.files)
    optimizer.safetensors            the optimizer's float32 state
    training.json                    counters, loss scale, position in the data, seed
    run.yaml                         the resolved run
    metrics.jsonl                    the history of the run so far
    parallel.json                    which part of the model this is, where there are several
    manifest.json                    size and SHA-256 of all of these

Random state is the seed and the number of the step: initial values, order of samples and dropout
masks are functions of these. So a run that goes on from here is bit-identical to one that never
stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core import spec as registry
from lm_core.checkpoint import atomic, io, parts, saved, tensorfile
from lm_core.checkpoint.layout.tensors import Memory, Tensors, total_bytes
from lm_core.checkpoint.saved import METRICS, OPTIMIZER, STATE
from lm_core.config.of_checkpoint import RUN
from lm_core.errors import CheckpointError, some
from lm_core.log import get_logger
from lm_core.peft import files as adapters

if TYPE_CHECKING:
    from mindspore import Parameter

    from lm_core.config.model import ModelConfig
    from lm_core.data.pipeline import BatchIterator
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.train.loss_scale import LossScale
    from lm_core.train.step import TrainStep

_VERSION = 1


@dataclass
class TrainState:
    """Everything of a run that changes from step to step.

    Attributes:
        model: the model.
        step: the compiled step with its optimizer and counters.
        loss_scale: the loss scale.
        data: the batches and the position among them.
        run_text: the resolved run as YAML.
        metrics: the file with the history of the run.
        files: more files for every checkpoint (the tokenizer's), by name.
        base: for checkpoints that hold an adapter and not the weights under it: where these came
            from, and their checksum. None: checkpoints hold everything.
    """

    model: Network
    step: TrainStep
    loss_scale: LossScale
    data: BatchIterator
    run_text: str = ""
    metrics: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    base: tuple[str, str] | None = None

    def save(self, directory: Path) -> None:
        """Writes a checkpoint; `directory` is there whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there is unchanged.
        """
        self.snapshot(copy=False).write(directory)

    def snapshot(self, *, copy: bool = True) -> Snapshot:
        """This moment of the run.

        Args:
            copy: keep it, in host memory, while training goes on. False: it must be written before
                the next step.
        """
        weights: Tensors = io.Parameters(self._saved())
        moments: Tensors = io.Parameters(self.step.optimizer.state())
        history = self.metrics.stat().st_size if self.metrics and self.metrics.exists() else 0
        return Snapshot(
            spec_name=self.model.spec_name,
            config=self.model.config,
            context=self.model.context,
            weights=_copied(weights) if copy else weights,
            moments=_copied(moments) if copy else moments,
            counters=self.counters(),
            run_text=self.run_text,
            metrics=self.metrics if history else None,
            history=history,
            files=self.files,
            base=self.base,
        )

    def _saved(self) -> dict[str, Parameter]:
        """The weights that a checkpoint holds."""
        every = self.model.named_parameters()
        if self.base is None:
            return every
        return {name: parameter for name, parameter in every.items() if parameter.requires_grad}

    def counters(self) -> dict[str, Any]:
        """The content of training.json."""
        return {
            "version": _VERSION,
            "step": self.step.steps,
            "updates": self.step.updates,
            "seed": self.step.seed,
            "loss_scale": self.loss_scale.state(),
            "data": self.data.state(),
        }

    def load(self, directory: Path) -> None:
        """Goes on from a checkpoint, which `find` has verified.

        Raises:
            CheckpointError: it is of another model or optimizer.
            DataError: it is of a run over other data, or over the same in another order.
        """
        before, now = read_counters(directory), self.counters()
        changed = [
            f"resume: {name} was {before[name]}, now it is {now[name]}; the run would "
            f"not go on as it was; set it back, or start anew with --load_checkpoint {directory}"
            for name in ("seed",)
            if before[name] != now[name]
        ]
        if changed:
            raise CheckpointError(*changed)
        self.data.load_state(before["data"])
        _assign(self._saved(), self._weights_in(directory))
        _assign(self.step.optimizer.state(), io.open_file(directory / OPTIMIZER))
        self.loss_scale.load_state(before["loss_scale"])
        self.step.steps, self.step.updates = int(before["step"]), int(before["updates"])
        if self.metrics is not None:
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            kept = directory / METRICS
            self.metrics.write_bytes(kept.read_bytes() if kept.exists() else b"")

    def _weights_in(self, directory: Path) -> Tensors:
        if self.base is None:
            return io.open_directory(directory)
        config = self.model.config
        adapter = adapters.read(directory, registry.find(self.model.spec_name), config)
        adapters.check_base(adapter, io.Parameters(self.model.named_parameters()))
        return Memory(adapter.arrays, adapter.where)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One moment of a run, to be written.

    Attributes:
        spec_name: the model family.
        config: the architecture.
        context: whose part of the model this is.
        weights: of the model.
        moments: of the optimizer.
        counters: the content of training.json.
        run_text: the resolved run as YAML.
        metrics: the file with the history of the run, which may be growing.
        history: bytes of it that belong to this moment.
        files: more files, by name.
        base: as of TrainState.
    """

    spec_name: str
    config: ModelConfig
    context: ParallelContext
    weights: Tensors
    moments: Tensors
    counters: Mapping[str, Any]
    run_text: str = ""
    metrics: Path | None = None
    history: int = 0
    files: Mapping[str, Path] = field(default_factory=dict)
    base: tuple[str, str] | None = None

    def write(self, directory: Path) -> None:
        """Writes a checkpoint; `directory` is there whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there is unchanged.
        """
        atomic.require_space(directory, self.nbytes)
        with atomic.new_directory(directory, overwrite=True) as scratch:
            self._write_weights(scratch)
            if self.context.world_size > 1:
                parts.write_layout(scratch, self.context.degrees, self.context.rank)
            tensorfile.write(scratch / OPTIMIZER, self.moments)
            (scratch / STATE).write_text(json.dumps(self.counters, indent=1) + "\n")
            (scratch / RUN).write_text(self.run_text, encoding="utf-8")
            if self.metrics is not None:
                with self.metrics.open("rb") as file:
                    (scratch / METRICS).write_bytes(file.read(self.history))
            for name, source in self.files.items():
                io.add_file(scratch / name, source)

    def _write_weights(self, scratch: Path) -> None:
        if self.base is None:
            io.write_native(scratch, self.spec_name, self.config, self.weights)
            return
        assert self.config.pet_config is not None
        arrays = {name: self.weights.read(name) for name in self.weights.specs}
        adapter = adapters.Adapter(self.config.pet_config, arrays, *self.base)
        io.write_config(scratch, self.spec_name, self.config)
        adapters.write(scratch, adapter, registry.find(self.spec_name), self.config)

    @property
    def nbytes(self) -> int:
        """What it takes on the disk, but for a few KB."""
        beside = sum(path.stat().st_size for path in self.files.values() if path.exists())
        return total_bytes(self.weights) + total_bytes(self.moments) + self.history + beside


def read_counters(directory: Path) -> dict[str, Any]:
    """What training.json of a checkpoint says.

    Raises:
        CheckpointError: it is missing or of a later version of this program.
    """
    path = directory / STATE
    try:
        counters = json.loads(path.read_text())
        version = int(counters["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not readable ({error}); a training checkpoint has one; use another"
        ) from error
    if version > _VERSION:
        raise CheckpointError(
            f"{path}: version {version} is of a later lm; this one reads {_VERSION}; update it"
        )
    return counters


def find(wanted: bool | str, output: Path) -> Path | None:
    """The checkpoint that `--resume_training` means; every file of it is verified.

    Args:
        wanted: True for the newest in `output`; a step; a checkpoint; or a directory with some.
            False for none.
        output: the folder with the run's checkpoints.

    Returns:
        None for False, and for True where there is nothing yet to go on from.

    Raises:
        CheckpointError: there is no such checkpoint, or none that is undamaged.
    """
    if wanted is False or wanted == "":
        return None
    if wanted is True:
        found = saved.newest(output, STATE)
        if found is None:
            get_logger(__name__).warning("%s holds no checkpoint yet; starting at step 0", output)
        return found
    if re.fullmatch(r"\d+", str(wanted)):
        existing = saved.checkpoints(output, STATE)
        found = [path for path in existing if saved.step_of(path) == int(wanted)]
        if not found:
            known = ", ".join(str(saved.step_of(path)) for path in existing)
            advice = f"use one that it has: {known}" if known else "it has none; leave this out"
            raise CheckpointError(
                f"resume_training: {output} has no checkpoint of step {wanted}; {advice}"
            )
        atomic.check(found[0])
        return found[0]
    directory = Path(str(wanted)).expanduser()
    if (directory / STATE).is_file():
        atomic.check(directory)
        return directory
    best = saved.newest(directory, STATE)
    if best is None:
        raise CheckpointError(
            f"resume_training: {directory} holds no training checkpoint; name one, a folder with "
            f"some, a step, or true for the newest of output_dir"
        )
    return best


def _copied(tensors: Tensors) -> Memory:
    """The values as they are now, whatever is computed next."""
    return Memory({name: np.array(tensors.read(name)) for name in tensors.specs})


def _assign(parameters: Mapping[str, Any], tensors: Any) -> None:
    """Fills all of the parameters; both sides must have the same names."""
    missing = sorted(parameters.keys() - tensors.specs.keys())
    if missing:
        raise CheckpointError(
            f"{tensors.where}: lacks {some(missing)}; the run would not go on as it was; "
            f"resume with the model and optimizer that wrote it"
        )
    io.assign(parameters, tensors)
