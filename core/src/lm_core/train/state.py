"""What a training checkpoint holds, and finding the one to go on from.

A directory `<prefix>-<step>` is complete or absent (`checkpoint.atomic`) and holds

    model.safetensors, config.json   a model directory like any other, for from_pretrained
    optimizer.safetensors            the optimizer's float32 state
    training.json                    counters, loss scale, position in the data, seed
    run.yaml                         the resolved run
    metrics.jsonl                    the history of the run so far
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

from lm_core.checkpoint import atomic, io, tensorfile
from lm_core.errors import CheckpointError
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.data.pipeline import BatchIterator
    from lm_core.nn.network import Network
    from lm_core.train.loss_scale import LossScale
    from lm_core.train.step import TrainStep

STATE = "training.json"
OPTIMIZER = "optimizer.safetensors"
METRICS = "metrics.jsonl"
RUN = "run.yaml"
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
    """

    model: Network
    step: TrainStep
    loss_scale: LossScale
    data: BatchIterator
    run_text: str = ""
    metrics: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Writes a checkpoint; `directory` is there whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there is unchanged.
        """
        weights = io.Parameters(self.model.named_parameters())
        moments = io.Parameters(self.step.optimizer.state())
        atomic.require_space(directory, _size(weights) + _size(moments))
        with atomic.new_directory(directory, overwrite=True) as scratch:
            io.write_native(scratch, self.model.spec_name, self.model.config, weights)
            tensorfile.write(scratch / OPTIMIZER, moments)
            (scratch / STATE).write_text(json.dumps(self.counters(), indent=1) + "\n")
            (scratch / RUN).write_text(self.run_text, encoding="utf-8")
            if self.metrics is not None and self.metrics.exists():
                io.add_file(scratch / METRICS, self.metrics)
            for name, source in self.files.items():
                io.add_file(scratch / name, source)

    def counters(self) -> dict[str, Any]:
        """The content of training.json."""
        return {
            "version": _VERSION,
            "step": self.step.steps,
            "updates": self.step.updates,
            "accumulation": self.step.accumulation,
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
        saved = read_counters(directory)
        changed = [
            f"resume: {name} was {saved[name]}, now it is {self.counters()[name]}; the run would "
            f"not go on as it was; set it back, or start anew with --load_checkpoint {directory}"
            for name in ("seed", "accumulation")
            if saved[name] != self.counters()[name]
        ]
        if changed:
            raise CheckpointError(*changed)
        self.data.load_state(saved["data"])
        _assign(self.model.named_parameters(), io.open_directory(directory))
        _assign(self.step.optimizer.state(), io.open_file(directory / OPTIMIZER))
        self.loss_scale.load_state(saved["loss_scale"])
        self.step.steps, self.step.updates = int(saved["step"]), int(saved["updates"])
        if self.metrics is not None:
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            kept = directory / METRICS
            self.metrics.write_bytes(kept.read_bytes() if kept.exists() else b"")


def read_counters(directory: Path) -> dict[str, Any]:
    """What training.json of a checkpoint says.

    Raises:
        CheckpointError: it is missing or of a later version of this program.
    """
    path = directory / STATE
    try:
        saved = json.loads(path.read_text())
        version = int(saved["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not readable ({error}); a training checkpoint has one; use another"
        ) from error
    if version > _VERSION:
        raise CheckpointError(
            f"{path}: version {version} is of a later lm; this one reads {_VERSION}; update it"
        )
    return saved


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
        return newest(output)
    if re.fullmatch(r"\d+", str(wanted)):
        found = [path for path in checkpoints(output) if _number(path) == int(wanted)]
        if not found:
            known = ", ".join(str(_number(path)) for path in checkpoints(output)) or "none"
            raise CheckpointError(
                f"resume_training: {output} has no checkpoint of step {wanted}; it has {known}"
            )
        atomic.check(found[0])
        return found[0]
    directory = Path(str(wanted)).expanduser()
    if (directory / STATE).is_file():
        atomic.check(directory)
        return directory
    best = newest(directory)
    if best is None:
        raise CheckpointError(
            f"resume_training: {directory} holds no training checkpoint; name one, a folder with "
            f"some, a step, or true for the newest of output_dir"
        )
    return best


def newest(folder: Path) -> Path | None:
    """The last checkpoint below a folder that is undamaged; damaged ones are named, passed over.

    Raises:
        CheckpointError: there are some and all are damaged.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        problems = atomic.verify(path)
        if not problems:
            return path
        damaged += problems
        get_logger(__name__).warning("%s; trying the checkpoint before it", "; ".join(problems))
    if damaged:
        raise CheckpointError(*damaged)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All training checkpoints in a run's folder or below it, the last step first."""
    for aside in folder.glob(".*.old-*"):
        # A writer that died while it replaced this one.
        atomic.recover(folder / aside.name[1:].partition(".old-")[0])
    found = [
        path.parent
        for depth in range(4)
        for path in folder.glob("*/" * depth + STATE)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=_number, reverse=True)


def _number(directory: Path) -> int:
    """The step in a checkpoint's name."""
    match = re.search(r"(\d+)$", directory.name)
    return int(match[1]) if match else -1


def _size(tensors: io.Parameters) -> int:
    return sum(spec.nbytes for spec in tensors.specs.values())


def _assign(parameters: Mapping[str, Any], tensors: Any) -> None:
    """Fills all of the parameters; both sides must have the same names."""
    missing = sorted(parameters.keys() - tensors.specs.keys())
    if missing:
        raise CheckpointError(
            f"{tensors.where}: lacks {', '.join(missing)}; the run would not go on as it was; "
            f"resume with the model and optimizer that wrote it"
        )
    io.assign(parameters, tensors)
