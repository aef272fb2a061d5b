"""A foreign layout, described once and used in both directions.

A `Table` is a list of rows `(theirs, ours, *operations)`. A name may be a tuple of names, `{}` is
the layer number and `{last}` the number of layers that `{}` runs over. Nothing is computed before
it is asked for: `Table.load` and `Table.save` give a `Tensors` whose names, shapes and types are
known at once and whose arrays are made one row at a time.

Shapes are worked out by the operations themselves, on arrays of a type of zero bytes: these have a
shape and cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from lm_core.checkpoint.layout.ops import Arrays, Op, Tie
from lm_core.checkpoint.layout.release import Release, Slices
from lm_core.checkpoint.layout.report import Report
from lm_core.checkpoint.layout.tensors import Shape, Tensors, TensorSpec, dtype_name, same_bits
from lm_core.errors import CheckpointError

Shapes = Mapping[str, Shape]

_NOTHING = np.dtype([])


@dataclass(frozen=True)
class Row:
    """One row; names hold `{}` until `Table.expand` numbers them."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    ops: tuple[Op, ...] = ()

    @property
    def tie(self) -> Tie | None:
        """The row's `Tie`, if it has one."""
        return next((op for op in self.ops if isinstance(op, Tie)), None)

    def load(self, arrays: Arrays, config: Any) -> Arrays:
        """Their arrays to ours."""
        for op in self.ops:
            arrays = op.load(arrays, config)
        return arrays

    def save(self, arrays: Arrays, config: Any) -> Arrays:
        """Our arrays to theirs."""
        for op in reversed(self.ops):
            arrays = op.save(arrays, config)
        return arrays

    def their_shapes(self, shapes: Shapes, config: Any) -> list[Shape]:
        """The shapes of `theirs`, given all of ours."""
        return [
            array.shape
            for array in self.save([np.empty(shapes[name], _NOTHING) for name in self.ours], config)
        ]


@dataclass
class _Step:
    """Some arrays made of some others: `compute` gives `outputs` from `inputs`, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compute: Callable[[Arrays], Arrays]


class Mapped:
    """The result of a table: a `Tensors` whose arrays are made of another one's when they are read.

    The arrays of one row are kept until another row is read, so reading in order computes each row
    once and holds one row.
    """

    def __init__(
        self, source: Tensors, steps: Iterable[_Step], shapes: Shapes, metadata: Mapping[str, str]
    ) -> None:
        self.where = source.where
        self.metadata = metadata
        self._source = source
        self._steps = {name: step for step in steps for name in step.outputs}
        self.specs = {
            name: TensorSpec(shapes[name], self._dtype(step)) for name, step in self._steps.items()
        }
        self._held: dict[str, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """Computes the row of `name`, unless it is the one just computed."""
        if name not in self._held:
            self._held = {}
            step = self._steps[name]
            made = step.compute([self._source.read(n) for n in step.inputs])
            self._held = dict(zip(step.outputs, made, strict=True))
        return self._held.pop(name)

    def _dtype(self, step: _Step) -> np.dtype:
        dtypes = [self._source.specs[name].dtype for name in step.inputs]
        if any(dtype != dtypes[0] for dtype in dtypes):
            listed = ", ".join(
                f"{name} {dtype_name(dtype)}"
                for name, dtype in zip(step.inputs, dtypes, strict=True)
            )
            raise CheckpointError(
                f"{self.where}: {listed} become one tensor and must have one type; "
                f"give a dtype that all are cast to"
            )
        return dtypes[0]


class Table:
    """A foreign layout of one model family.

    Args:
        rows: `(theirs, ours, *operations)`; rows whose parameters a configuration does not have are
            left out for it.
        shapes: gives the model's parameters and their shapes for a configuration.
        name: the layout's name in messages and metadata.
        ignore: patterns of whole names that are no parameters (mask buffers, optimizer state).
        prefix: a start of their names that a file may lack.
        layers: how many layers `{}` runs over; `config.num_layers` if not given.
        published: hub ids of weights in this layout, by preset.
        release: how the model's authors publish this layout, where not as one usually does.
        slices: the same, where it is the parts of a run; such a layout is read and never written.
    """

    def __init__(
        self,
        rows: Iterable[tuple[Any, ...]],
        shapes: Callable[[Any], Shapes],
        *,
        name: str,
        ignore: Iterable[str] = (),
        prefix: str = "",
        layers: Callable[[Any], int] = lambda config: config.num_layers,
        published: Mapping[str, str] | None = None,
        release: Release | None = None,
        slices: Slices | None = None,
    ) -> None:
        self.rows = tuple(
            Row(_names(theirs), _names(ours), tuple(ops)) for theirs, ours, *ops in rows
        )
        self.shapes = shapes
        self.name = name
        self.prefix = prefix
        self.layers = layers
        self.published = dict(published or {})
        self.release = release
        self.slices = slices
        self._ignore = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")

    def expand(self, config: Any) -> list[Row]:
        """All rows with numbers in place, layer after layer where rows with `{}` stand together."""
        count = self.layers(config)
        rows: list[Row] = []
        for per_layer, group in groupby(self.rows, lambda row: "{}" in row.ours[0]):
            members = list(group)
            rows += [
                _numbered(row, i, count)
                for i in (range(count) if per_layer else [count])
                for row in members
            ]
        return rows

    def load(
        self,
        source: Tensors,
        config: Any,
        absent: Collection[str] = (),
        spare: Collection[str] = (),
    ) -> Mapped:
        """Their tensors as ours.

        Args:
            source: what a file holds.
            config: the model's configuration.
            absent: our names that the file may lack (a head that is trained afresh); the result
                lacks them too.
            spare: our names that the file may have and this configuration has not (the head of
                another task); they are passed over.

        Raises:
            CheckpointError: unknown, missing or wrongly shaped tensors, all of them, one line for
                each kind.
        """
        shapes = self.shapes(config)
        report = Report(source.where, self.name)
        prefixed = any(name.startswith(self.prefix) for name in source.specs)
        unused = self._spelling(source)
        steps: dict[str, _Step] = {}
        ties: list[tuple[str, str]] = []
        for row in (*self.rows, *(Row((name,), (name,)) for name in spare)):
            if set(row.ours) <= set(spare):
                for name in row.theirs:
                    unused.pop(name, None)
        for row in self.expand(config):
            active = all(name in shapes for name in row.ours)
            if not active and row.tie is None:
                continue
            used = [unused.pop(name, None) for name in row.theirs]
            found = tuple(name for name in used if name is not None)
            if not active and row.tie is not None:
                ties += [(row.tie.to, name) for name in found]
            elif len(found) < len(used):
                lacking = [
                    name for name, actual in zip(row.theirs, used, strict=True) if actual is None
                ]
                expected = not set(row.ours) <= set(absent) or found
                report.missing += (
                    [n if prefixed else n.removeprefix(self.prefix) for n in lacking]
                    if expected
                    else []
                )
            else:
                for name, shape in zip(found, row.their_shapes(shapes, config), strict=True):
                    report.check(name, source.specs[name].shape, shape)
                steps[row.ours[0]] = _Step(found, row.ours, partial(row.load, config=config))
        report.unknown = [name for name in unused.values() if not self._ignored(name)]
        report.finish()
        for to, name in ties:
            steps[to].compute = partial(
                _equal_then, steps[to].compute, source, steps[to].inputs[0], name
            )
        note = {f"{self.name}.prefix": self.prefix if prefixed else ""} if self.prefix else {}
        return Mapped(source, steps.values(), shapes, {**source.metadata, **note})

    def save(self, source: Tensors, config: Any, prefix: str | None = None) -> Mapped:
        """Our tensors as theirs.

        Args:
            source: all parameters of the model under our names.
            config: the model's configuration.
            prefix: "" leaves the table's prefix out; None: as in the file these tensors were once
                read from, else with it.

        Raises:
            CheckpointError: `source` does not hold exactly the parameters of this configuration.
        """
        ours = self.shapes(config)
        _require(source, ours)
        if prefix is None:
            prefix = source.metadata.get(f"{self.name}.prefix", self.prefix)
        shapes: dict[str, Shape] = {}
        steps: list[_Step] = []
        for row in self._written(config, ours):
            names = tuple(
                prefix + n.removeprefix(self.prefix) if n.startswith(self.prefix) else n
                for n in row.theirs
            )
            shapes.update(zip(names, row.their_shapes(ours, config), strict=True))
            steps.append(_Step(row.ours, names, partial(row.save, config=config)))
        return Mapped(source, steps, shapes, source.metadata)

    def recognised(self, names: Iterable[str]) -> int:
        """How many of the names this layout knows, for any number of layers."""
        known = [re.escape(name) for row in self.rows for name in row.theirs]
        pattern = re.compile(
            "|".join(re.sub(r"\\\{(?:last)?\\\}", r"\\d+", name) for name in known) or r"(?!)"
        )
        return sum(
            bool(pattern.fullmatch(name) or pattern.fullmatch(self.prefix + name)) for name in names
        )

    def _spelling(self, source: Tensors) -> dict[str, str]:
        """Whole names -> the names in the file, which may lack the prefix."""
        never_prefixed = {
            name for row in self.rows for name in row.theirs if not name.startswith(self.prefix)
        }
        spelled: dict[str, str] = {}
        for name in source.specs:
            whole = (
                name
                if name.startswith(self.prefix) or name in never_prefixed
                else self.prefix + name
            )
            # One name in both spellings: the second one gets a key that no row asks for, so that it
            # is reported.
            spelled[f"{whole} twice" if whole in spelled else whole] = name
        return spelled

    def _ignored(self, name: str) -> bool:
        return bool(self._ignore.fullmatch(name) or self._ignore.fullmatch(self.prefix + name))

    def _written(self, config: Any, ours: Shapes) -> list[Row]:
        """The rows of this configuration, and those tied ones that are to be repeated."""
        rows = {
            row.ours[0]: row
            for row in self.expand(config)
            if all(name in ours for name in row.ours)
        }
        ties = [
            (row, row.tie)
            for row in self.expand(config)
            if row.ours[0] not in rows and row.tie is not None
        ]
        repeated = [
            Row(row.theirs, rows[tie.to].ours, rows[tie.to].ops) for row, tie in ties if tie.write
        ]
        return [*rows.values(), *repeated]


class Native(Table):
    """Our own layout: every name is its own."""

    def __init__(self, shapes: Callable[[Any], Shapes]) -> None:
        super().__init__((), shapes, name="native")

    def expand(self, config: Any) -> list[Row]:
        """One row for each parameter."""
        return [Row((name,), (name,)) for name in self.shapes(config)]


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _numbered(row: Row, number: int, last: int) -> Row:
    def fill(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("{}", str(number)).replace("{last}", str(last)) for name in names)

    return Row(fill(row.theirs), fill(row.ours), row.ops)


def _equal_then(
    compute: Callable[[Arrays], Arrays], source: Tensors, name: str, repeated: str, arrays: Arrays
) -> Arrays:
    """`compute(arrays)`, after a look that the tensor `repeated` is indeed the first of them."""
    if not same_bits(source.read(repeated), arrays[0]):
        raise CheckpointError(
            f"{source.where}: {repeated} differs from {name} but the configuration ties them; "
            f"they must be equal; set tie_word_embeddings to false to keep both"
        )
    return compute(arrays)


def _require(source: Tensors, shapes: Shapes) -> None:
    report = Report(source.where, "native")
    report.missing = [name for name in shapes if name not in source.specs]
    report.unknown = [name for name in source.specs if name not in shapes]
    for name, spec in source.specs.items():
        if name in shapes:
            report.check(name, spec.shape, shapes[name])
    report.finish()
