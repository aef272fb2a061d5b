"""Directories as the authors of a model publish it: found, and opened as one `Tensors`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lm_core.checkpoint import io
from lm_core.checkpoint.layout.release import Pieces, Release
from lm_core.checkpoint.layout.tensors import Tensors
from lm_core.errors import CheckpointError

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec

_SUFFIXES = (".safetensors", ".pth")
"""The first of them that is there is read."""


class Found(NamedTuple):
    """What a directory is."""

    spec: ModelSpec
    layout: str
    release: Release


def find(directory: Path, families: Iterable[ModelSpec]) -> Found | None:
    """The family and the layout whose release a directory is; None if it is none."""
    for spec in families:
        for layout, table in spec.tables.items():
            release = table.release
            if release is None or not (directory / release.description).is_file():
                continue
            if files(directory, release):
                return Found(spec, layout, release)
    return None


def files(directory: Path, release: Release) -> list[Path]:
    """The weight files in the order of their ranks; none in a directory of another kind.

    Raises:
        CheckpointError: one between them is missing.
    """
    for suffix in _SUFFIXES:
        whole = directory / f"{release.files}{suffix}"
        if whole.is_file():
            return [whole]
        numbered = _numbered(directory, release.files, suffix)
        absent = sorted(set(range(max(numbered, default=-1) + 1)) - numbered.keys())
        if absent:
            names = ", ".join(f"{release.files}.{rank:02}{suffix}" for rank in absent)
            raise CheckpointError(
                f"{directory}: {names} missing; all files of the release must be there; copy them "
                f"too"
            )
        if numbered:
            return [numbered[rank] for rank in sorted(numbered)]
    return []


def open_files(directory: Path, release: Release) -> Tensors:
    """The whole tensors under the release's names.

    Raises:
        CheckpointError: a file is missing or damaged, they do not belong together, or torch is
            needed and not installed.
    """
    parts = [io.open_file(path) for path in files(directory, release)]
    return Pieces(str(directory), parts, release.axis)


def _numbered(directory: Path, start: str, suffix: str) -> dict[int, Path]:
    pattern = re.compile(rf"{re.escape(start)}\.(\d+){re.escape(suffix)}")
    matches = ((pattern.fullmatch(path.name), path) for path in directory.glob(f"{start}.*"))
    return {int(match[1]): path for match, path in matches if match}
