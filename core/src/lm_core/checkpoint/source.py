"""Weights that were found: where they are, whose names they have, what they are read as."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_core.checkpoint import atomic, io, parts, rankfolders, released
from lm_core.checkpoint.layout.table import Mapped, Native, Table
from lm_core.checkpoint.layout.tensors import Memory, Tensors
from lm_core.config.model import ModelConfig
from lm_core.errors import CheckpointError
from lm_core.log import notice_once
from lm_core.peft import layout, targets

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec


@dataclass(frozen=True)
class Recut:
    """What to do with weights that lie in `rank_R` folders.

    Attributes:
        auto_trans: recut those of other degrees ("auto_trans_ckpt").
        scratch: where recut parts are written.
        src_strategy: the strategy file or folder of parts that others wrote; "" for none.
    """

    auto_trans: bool = False
    scratch: str | Path = "./output/transformed_checkpoint"
    src_strategy: str = ""


@dataclass(frozen=True)
class Source:
    """Where weights come from and what they are.

    Attributes:
        kind: "directory" or "file" holds weights; "preset" is a name without any.
        path: the directory or file; None for a preset.
        spec: the model family.
        config: the architecture that belongs to the weights.
        layout: whose names the weights have: "native", "hf", "mindformers" ...
        notes: what an earlier conversion left to remember, for the metadata of the tensors.
        adapter: the folder of an adapter that belongs on the model; None for none.
    """

    kind: Literal["directory", "file", "preset"]
    path: Path | None
    spec: ModelSpec
    config: ModelConfig
    layout: str
    notes: Mapping[str, str] = field(default_factory=dict)
    adapter: Path | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there are any: a preset is a name, and a directory may be a description alone."""
        if self.path is None or self.path.is_file():
            return self.path is not None
        if released.find(self.path, [self.spec]) is not None:
            return True
        return any(map(io.has_weights, (self.path, *rankfolders.folders(self.path))))

    @property
    def table(self) -> Table:
        """The layout of the weights."""
        return table_of(self.spec, self.layout)

    def tensors(
        self, config: ModelConfig | None = None, **lenient: Collection[str]
    ) -> Mapped | io.Joined:
        """The weights under our own names, checked by their manifest if they have one.

        An adapter among them is part of the result where the configuration has one; a new one, of
        which they hold nothing, is not.

        Args:
            config: the architecture to fit them to, if it is not `self.config`.
            lenient: `absent` and `spare`, names that may be missing or too many: `Table.load`.

        Raises:
            CheckpointError: there are none, they are damaged, or they do not fit.
        """
        tensors = self._load(self.raw(), config or self.config, **lenient)
        tensors.metadata = {**tensors.metadata, **self.notes}
        return tensors

    def _load(
        self, raw: Tensors, config: ModelConfig, **lenient: Collection[str]
    ) -> Mapped | io.Joined:
        inside = [name for name in raw.specs if layout.is_adapter_name(name)]
        if inside and config.pet_config is None:
            raise CheckpointError(
                f"{raw.where}: holds an adapter ({inside[0]}, ...) and the run has none; set "
                f"model.model_config.pet_config (a run such as {self.spec.name}_lora has it), or "
                f"merge the adapter first"
            )
        if config.pet_config is None:
            return self.table.load(raw, config, **lenient)
        if self.layout == "native":
            new = () if inside else targets.adapter_shapes(self.spec, config, config.pet_config)
            lenient["absent"] = [*lenient.get("absent", ()), *new]
            return self.table.load(raw, config, **lenient)
        adapter = layout.load(raw, self.spec, config, config.pet_config) if inside else {}
        base = io.Joined(raw.where, [(raw, raw.specs.keys() - set(inside))])
        parts = [self.table.load(base, config, **lenient), Memory(adapter, raw.where)]
        return io.Joined(raw.where, [(part, part.specs.keys()) for part in parts])

    def raw(self) -> Tensors:
        """The weights under the names that the files have."""
        if self.path is None:
            raise CheckpointError(f"{self.spec.name}: a preset has no weights; give a directory")
        if self.kind == "file":
            atomic.check_file(self.path)
            return io.open_file(self.path)
        _require_whole(self.path)
        if (self.path / atomic.MANIFEST).exists():
            atomic.check(self.path)
        elif self.layout == "native":
            notice_once(
                f"unverified {self.path}",
                f"{self.path}: has no {atomic.MANIFEST}; the files are not verified",
            )
        release = self.table.release
        if release is not None and released.files(self.path, release):
            return released.open_files(self.path, release)
        return io.open_directory(self.path)


def table_of(spec: ModelSpec, layout: str) -> Table:
    """A family's table by name; "native" is our own layout.

    Raises:
        CheckpointError: the family has no such table.
    """
    if layout == "native":
        return Native(partial(targets.shapes, spec))
    if layout not in spec.tables:
        known = ", ".join(["native", *spec.tables])
        raise CheckpointError(f"{layout!r}: lm_{spec.name} has no such layout; use one of {known}")
    return spec.tables[layout]


def _require_whole(directory: Path) -> None:
    """A rank's part of a model must not be taken for the model."""
    layout = parts.read_layout(directory)
    if layout is not None and layout.cuts_weights:
        raise CheckpointError(
            f"{directory}: holds the part of rank {layout.rank} of a model that was cut with "
            f"{layout}; a whole model is needed here; set auto_trans_ckpt: True in a run, or merge "
            f"the parts with `transform`"
        )
    ranks = [] if io.has_weights(directory) else rankfolders.folders(directory)
    if ranks:
        raise CheckpointError(
            f"{directory}: holds the parts of {len(ranks)} ranks and not how they are cut; a whole "
            f"model lies in rank_0 alone; set src_strategy_path_or_dir to the strategy that was "
            f"written with them, or merge them with `transform`"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not readable JSON ({error}); use another copy"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be a JSON object; use another copy")
    return values
