"""`checkpoint verify|list DIR`: what checkpoints are below a folder, and whether they are whole."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_core.checkpoint import atomic, parts, rankfolders, saved
from lm_core.errors import CheckpointError
from lm_core.log import byte_count

HELP = {
    "verify": "read every file of every checkpoint and compare it with the manifest",
    "list": "show step, time, size, loss and state of every checkpoint",
}


def add_arguments(parser: ArgumentParser) -> None:
    """A sub-command for each thing to do."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="|".join(HELP))
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("directory", metavar="DIR", help="a checkpoint, or a folder with some")


def run(args: Namespace) -> int:
    """Prints what is asked for.

    Raises:
        CheckpointError: there are none; `verify` found damage: a line for each damaged file.
    """
    folder = Path(args.directory).expanduser()
    found = _found(folder)
    if not found:
        what = "holds no checkpoint" if folder.is_dir() else "is no directory"
        raise CheckpointError(
            f"{folder}: {what}; a checkpoint has a {atomic.MANIFEST}; name one, or a folder above"
        )
    (_verify if args.action == "verify" else _list)(found)
    return 0


@dataclass(frozen=True)
class Found:
    """A checkpoint: of one process, or the parts of all ranks at one step.

    Attributes:
        where: what it is called.
        directories: one, or those of the ranks whose parts are there.
        missing: a line about the others.
    """

    where: str
    directories: list[Path]
    missing: list[str]

    @property
    def first(self) -> Path:
        """What stands for all."""
        return self.directories[0]


def _found(folder: Path) -> list[Found]:
    """All below a folder, by place and step."""
    found: dict[str, Found] = {}
    paths = saved.checkpoints(folder)
    for path in sorted(paths, key=lambda path: (path.parent, saved.step_of(path))):
        one = _with_other_ranks(path)
        found.setdefault(one.where, one)
    return list(found.values())


def _with_other_ranks(path: Path) -> Found:
    try:
        parted = parts.read_layout(path) is not None
    except CheckpointError:  # Verifying it says so.
        parted = False
    steps = rankfolders.steps(path) if parted else []
    if not steps or path not in (own := [steps[0].directory(rank) for rank in steps[0].found]):
        return Found(str(path), [path], [])
    return Found(steps[0].where, own, steps[0].missing())


def _verify(found: list[Found]) -> None:
    problems: list[str] = []
    for one in found:
        for path in one.directories:
            wrong = atomic.verify(path)
            problems += wrong
            if not wrong:
                files = atomic.read_manifest(path)
                print(f"{path}: ok, {len(files)} files, {byte_count(_bytes(path))}", flush=True)
        problems += one.missing
    if problems:
        raise CheckpointError(*problems)


def _list(found: list[Found]) -> None:
    print(Line("step", "saved", "size", "loss", "held out", "state", "checkpoint"))
    for one in found:
        print(_line(one), flush=True)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    step: str
    time: str
    size: str
    loss: str
    held_out: str
    state: str
    path: str

    def __str__(self) -> str:
        return (
            f"{self.step:>8}  {self.time:<19}  {self.size:>8}  {self.loss:>8}  "
            f"{self.held_out:>8}  {self.state:<7}  {self.path}"
        )


def _line(one: Found) -> Line:
    step = _step(one.first)
    loss, held_out = _losses(one.directories)
    damaged = any(atomic.verify(path) for path in one.directories)
    return Line(
        "-" if step < 0 else str(step),
        _time(one.first),
        byte_count(sum(map(_bytes, one.directories))),
        loss,
        held_out,
        "damaged" if damaged else "partial" if one.missing else "ok",
        one.where,
    )


def _step(path: Path) -> int:
    """What training.json says, or else the name."""
    try:
        return int(json.loads((path / saved.STATE).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return saved.step_of(path)


def _time(path: Path) -> str:
    """When the manifest, the last of the files, was written."""
    place = path / atomic.MANIFEST
    seconds = (place if place.exists() else path).stat().st_mtime
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _losses(directories: list[Path]) -> tuple[str, str]:
    """The last training loss and the last held-out loss before the checkpoint; - if unknown."""
    last: dict[str, Any] = {}
    for path in directories:
        try:
            for line in (path / saved.METRICS).read_bytes().splitlines():
                last.update(json.loads(line))
        except (OSError, ValueError, TypeError):
            continue  # What the history says is a help; whether it is whole is said elsewhere.
    loss, held_out = (
        f"{value:.4f}" if isinstance(value := last.get(name), float) else "-"
        for name in ("loss", "eval_loss")
    )
    return loss, held_out


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
