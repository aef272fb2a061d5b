"""The release of a model's authors, in the parts of a run, as the input of `convert`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.errors import CheckpointError

if TYPE_CHECKING:
    from lm_core.checkpoint.layout import Slices, Tensors
    from lm_core.checkpoint.layout.table import Mapped
    from lm_core.checkpoint.sliced import Places
    from lm_core.checkpoint.source import Source
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec

_PLACES = {
    "strategy_path": ("FILE", "strategy file of the run that wrote the parts"),
    "ckpt_dir": ("DIR", "folder with the parts of all ranks"),
    "npy_dir": ("DIR", "folder with the .npy files of the tables, which may be the same"),
}


def layout_of(spec: ModelSpec) -> str | None:
    """The layout of a model whose authors published the parts of a run; None for others."""
    return next((name for name, table in spec.tables.items() if table.slices is not None), None)


def add_flags(parser: ArgumentParser, layout: str) -> None:
    """Where the files of a release are, in the place of --input."""
    group = parser.add_argument_group(
        f"the {layout} release",
        "in the place of --input, with --config; a directory is native if --format is not given",
    )
    for name, (metavar, says) in _PLACES.items():
        group.add_argument(f"--{layout}_{name}", metavar=metavar, help=says)


def places(spec: ModelSpec, args: Namespace) -> Places | None:
    """Where the release is that is to be converted; None where --input is.

    Raises:
        CheckpointError: both are given, neither is, or a part of it is not.
    """
    layout = layout_of(spec)
    if layout is None:
        return None
    from lm_core.checkpoint.sliced import Places

    given = {f"--{layout}_{name}": getattr(args, f"{layout}_{name}") for name in _PLACES}
    if any(given.values()) == bool(args.input):
        what = "are both given" if args.input else "are both missing"
        raise CheckpointError(
            f"--input: this and {', '.join(given)} {what}; one of them must say what is converted; "
            f"give --input, or these three"
        )
    if args.input:
        _require_no_parts(Path(args.input).expanduser(), spec.tables[layout].slices, list(given))
        return None
    if not all(given.values()):
        lacking = ", ".join(flag for flag, value in given.items() if not value)
        raise CheckpointError(
            f"{lacking}: missing; the {layout} release is {', '.join(given)} together; add it"
        )
    return Places(*(Path(value).expanduser() for value in given.values()))


def opened(
    spec: ModelSpec, where: Places, output: str, layout: str, config: ModelConfig | None
) -> tuple[Source, Mapped]:
    """The release, and its tensors under our own names.

    Args:
        spec: whose it is.
        where: its files.
        output: what is to be written, which must be none of them.
        layout: of the output.
        config: what was given as the sizes of the model.

    Raises:
        CheckpointError: files are missing, damaged, or do not fit each other or the sizes.
    """
    from lm_core.checkpoint import sliced
    from lm_core.checkpoint.source import Source

    name = layout_of(spec)
    assert name is not None
    table = spec.tables[name]
    if not isinstance(config, spec.config_class):
        given = "missing" if config is None else f"a {type(config).__name__}"
        raise CheckpointError(
            f"--config: is {given}; must say the sizes of the {name} release, which does not; use "
            f"one of {', '.join(spec.presets)}, or a run file of {spec.name}"
        )
    if layout == "peft":
        raise CheckpointError(f"format: is peft; the {name} release has no adapter; use another")
    if where.holds(Path(output), table.slices):
        raise CheckpointError(
            f"{output}: is a file of the {name} release; it is never replaced; choose another name"
        )
    config = config.copy(pet_config=None)
    tensors = table.load(sliced.open_release(where, table.slices), config)
    return Source("directory", where.parts, spec, config, name), tensors


def is_there(output: str) -> bool:
    """Whether something stands where is to be written."""
    from lm_core.checkpoint.atomic import MANIFEST

    return Path(output).is_file() or (Path(output) / MANIFEST).is_file()


def require_same(source: Source, ours: Tensors, output: str, layout: str) -> None:
    """Looks at every tensor.

    Raises:
        CheckpointError: the output holds anything else than what would be written.
    """
    from lm_core.checkpoint import hub, io
    from lm_core.checkpoint.layout import same_bits
    from lm_core.log import progress

    config: Any = source.config
    written = config
    if layout == "hf":
        written = config.from_hf(config.to_hf()).copy(config.generation_to_hf())
    there = hub.resolve(output, spec=source.spec, config=config if Path(output).is_file() else None)
    same = there.layout == layout and io.architecture(there.config) == io.architecture(written)
    if same:
        found = there.tensors()
        names = progress(ours.specs, desc="compare", unit="tensor")
        same = found.specs == ours.specs and all(
            same_bits(found.read(name), ours.read(name)) for name in names
        )
    if not same:
        raise CheckpointError(
            f"{output}: is there already and is something else; it is replaced only if asked; "
            f"pass --overwrite or choose another name"
        )


def _require_no_parts(path: Path, slices: Slices, flags: list[str]) -> None:
    """Raises CheckpointError if a path is a release, or a part of one, which is no model."""
    from lm_core.checkpoint.sliced import numbered

    found = numbered(path if path.is_dir() else path.parent, slices.files)
    if found and (path.is_dir() or path in found.values()):
        raise CheckpointError(
            f"--input: {path} is of a release in {len(found)} parts, which alone are no model; its "
            f"strategy file and arrays are needed, too; give {', '.join(flags)} instead"
        )
