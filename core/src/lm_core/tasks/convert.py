"""The verb `convert`: the weights of a model from one layout to another, one tensor at a time."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.errors import CheckpointError

if TYPE_CHECKING:
    from lm_core.checkpoint.io import Joined, Parameters
    from lm_core.checkpoint.layout import Cast, Tensors
    from lm_core.checkpoint.layout.table import Mapped
    from lm_core.checkpoint.source import Source
    from lm_core.checkpoint.tensorfile import Progress
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec


def add_arguments(parser: ArgumentParser, spec: ModelSpec) -> None:
    """The flags of `convert`."""
    layouts = ["native", *sorted(spec.tables), "peft"]
    add = parser.add_argument
    add("--input", required=True, metavar="X", help="directory, weights file, run output or hub id")
    add("--output", required=True, metavar="DIR", help="directory to write")
    add(
        "--format",
        required=True,
        choices=layouts,
        help="whose names and files; peft: the adapter alone",
    )
    add(
        "--config", metavar="NAME", help="preset, run file or directory, if the input has no config"
    )
    add("--max_shard_size", metavar="SIZE", help="largest safetensors file, such as 5GB")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="type of the weights (as is)")
    add("--overwrite", action="store_true", help="replace a checkpoint that is there")


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Converts and says what was written.

    Raises:
        CheckpointError: the input does not fit its layout, or the output cannot be written.
    """
    from lm_core.checkpoint import hub
    from lm_core.checkpoint.atomic import new_directory, require_space
    from lm_core.checkpoint.layout import Cast
    from lm_core.checkpoint.layout.tensors import total_bytes
    from lm_core.checkpoint.tensorfile import parse_size
    from lm_core.log import progress

    limit = parse_size(args.max_shard_size) if args.max_shard_size else None
    if limit and args.format == "mindformers":
        raise CheckpointError(
            "max_shard_size: a .ckpt file is not sharded; leave --max_shard_size out"
        )
    source = hub.resolve(args.input, spec=spec, config=_config(args.config))
    if args.format == "peft":
        return _convert_adapter(source, args)
    if source.adapter is not None or (args.format != "native" and source.config.pet_config):
        raise CheckpointError(
            f"{args.input}: has an adapter, which the layout {args.format} does not hold; merge it "
            f"(python -m lm_{spec.name}.merge), or write it alone with --format peft"
        )
    source = hub.weights(args.input, source)
    ours: Mapped | Cast | Joined = source.tensors()
    if args.dtype:
        ours = Cast(ours, args.dtype)
    total = total_bytes(ours) / 1e6
    with (
        new_directory(args.output, overwrite=args.overwrite) as directory,
        progress(total=total, desc="convert", unit="MB") as bar,
    ):
        require_space(directory, total_bytes(ours))
        write(directory, source, ours, args.format, limit, lambda count: bar.update(count / 1e6))
    print(f"{args.output}: {len(ours.specs)} tensors, {total:,.1f} MB, layout {args.format}")
    return 0


def _convert_adapter(source: Source, args: Namespace) -> int:
    """Writes the adapter of a model, or the one in a folder, as PEFT stores it."""
    from lm_core.checkpoint.atomic import new_directory
    from lm_core.peft import files

    spec, config = source.spec, source.config
    if source.adapter is not None:
        adapter = files.read(source.adapter, spec, config)
    else:
        tensors = source.tensors()
        adapter = files.inside(tensors, spec, config)
        adapter.base_sum = files.checksum(tensors)
    with new_directory(args.output, overwrite=args.overwrite) as directory:
        files.write(directory, adapter, spec, config, "peft")
    print(f"{args.output}: the adapter on {len(adapter.layers)} layers, layout peft")
    return 0


def write(
    directory: Path,
    source: Source,
    ours: Mapped | Cast | Joined | Parameters,
    layout: str,
    limit: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Fills the output directory: config.json, weights, tokenizer and generation files."""
    from lm_core.checkpoint import io

    # What only the reader of the original layout knows, such as a prefix that its names lack.
    notes = {key: value for key, value in ours.metadata.items() if key.endswith(".prefix")}
    if layout == "native":
        ours.metadata = notes
        io.write_native(directory, source.spec.name, source.config, ours, limit, progress)
    elif layout == "hf":
        write_hf(directory, source, ours, limit, progress)
    else:
        write_ckpt(directory, source, ours, layout, notes, progress)
    folder = source.path.parent if source.path and source.path.is_file() else source.path
    for name, path in io.carried_files(folder or Path()).items():
        io.add_file(directory / name, path)


def write_hf(
    directory: Path, source: Source, ours: Tensors, limit: int | None, progress: Progress | None
) -> None:
    """Writes what `transformers` reads: its config.json and safetensors with its names."""
    from lm_core.checkpoint.layout.tensors import dtype_name
    from lm_core.checkpoint.source import table_of
    from lm_core.checkpoint.tensorfile import write_sharded

    theirs = table_of(source.spec, "hf").save(ours, source.config)
    theirs.metadata = {"format": "pt"}  # transformers refuses files that do not say it
    kinds = {dtype_name(spec.dtype) for spec in theirs.specs.values()}
    config = source.config.to_hf()
    if len(kinds) == 1:
        config["torch_dtype"] = kinds.pop()
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_sharded(directory, theirs, limit, progress)


def write_ckpt(
    directory: Path,
    source: Source,
    ours: Tensors,
    layout: str,
    notes: dict[str, str],
    progress: Progress | None,
) -> None:
    """Writes a MindSpore .ckpt with the names of `layout`, and a config.json that says so."""
    from lm_core.checkpoint import ckpt, io
    from lm_core.checkpoint.source import table_of

    theirs = table_of(source.spec, layout).save(ours, source.config)
    ckpt.write(directory / f"{source.spec.name}.ckpt", theirs, progress)
    io.write_config(directory, source.spec.name, source.config, {"name": layout, **notes})


def _config(name: str | None) -> ModelConfig | None:
    if name is None:
        return None
    from lm_core.auto import AutoConfig

    return AutoConfig.from_pretrained(name)
