"""The verb `convert`: the weights of a model from one layout to another, one tensor at a time."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.errors import CheckpointError
from lm_core.tasks import slices

if TYPE_CHECKING:
    from lm_core.checkpoint.io import Joined, Parameters
    from lm_core.checkpoint.layout import Cast, Release, Tensors
    from lm_core.checkpoint.layout.table import Mapped
    from lm_core.checkpoint.sliced import Places
    from lm_core.checkpoint.source import Source
    from lm_core.checkpoint.tensorfile import Progress
    from lm_core.config.model import ModelConfig
    from lm_core.spec import ModelSpec


def add_arguments(parser: ArgumentParser, spec: ModelSpec) -> None:
    """The flags of `convert`."""
    published = slices.layout_of(spec)
    layouts = ["native", *sorted(spec.tables.keys() - {published}), "peft"]
    add = parser.add_argument
    add(
        *("--input", "--torch_ckpt_dir", "--torch_ckpt_path"),
        required=published is None,
        metavar="X",
        help="directory, weights file (one of several means all), run output or hub id",
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument(
        "--output", metavar="DIR", help="directory to write; NAME.ckpt: that file alone"
    )
    output.add_argument(
        "--mindspore_ckpt_path",
        dest="output",
        type=lambda name: f"{name.removesuffix('.ckpt')}.ckpt",
        metavar="FILE",
        help="the same as --output FILE.ckpt",
    )
    config = ["--config"]
    if published is not None:
        # As MindFormers' script for such a release calls them.
        output.add_argument(
            "--ckpt_save_path", dest="output", metavar="X", help="the same as --output X"
        )
        config.append("--config_path_or_name")
        slices.add_flags(parser, published)
    add(
        "--format",
        choices=layouts,
        help="whose names and files (mindformers for a .ckpt file); peft: the adapter alone",
    )
    add(*config, metavar="NAME", help="preset, run file or directory, if the input has no config")
    add("--max_shard_size", metavar="SIZE", help="largest safetensors file, such as 5GB")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="type of the weights (as is)")
    add("--overwrite", action="store_true", help="replace a checkpoint that is there")


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Converts and says what was written.

    Raises:
        CheckpointError: the input does not fit its layout, or the output cannot be written.
    """
    from lm_core.checkpoint import hub
    from lm_core.checkpoint.layout import Cast
    from lm_core.checkpoint.tensorfile import parse_size

    limit = parse_size(args.max_shard_size) if args.max_shard_size else None
    if (places := slices.places(spec, args)) is not None:
        return _convert_release(spec, places, args, limit)
    _check_format(args)
    _check_absent(args)
    source = hub.resolve(args.input, spec=spec, config=_config(args.config))
    if args.format == "peft":
        return _convert_adapter(source, args)
    if source.adapter is not None or (args.format != "native" and source.config.pet_config):
        raise CheckpointError(
            f"{args.input}: has an adapter, which the layout {args.format} does not hold; merge it "
            f"(python -m lm_{spec.name}.merge), or write it alone with --format peft"
        )
    source = hub.weights(args.input, source)
    tensors = source.tensors()
    _convert(source, Cast(tensors, args.dtype) if args.dtype else tensors, args, limit)
    return 0


def _convert(
    source: Source, ours: Mapped | Cast | Joined, args: Namespace, limit: int | None
) -> None:
    """Writes the tensors."""
    from lm_core.checkpoint.atomic import new_directory, require_space
    from lm_core.checkpoint.layout.tensors import total_bytes
    from lm_core.log import progress

    total = total_bytes(ours) / 1e6
    require_space(args.output, total_bytes(ours))
    with progress(total=total, desc="convert", unit="MB") as bar:

        def told(count: int) -> None:
            bar.update(count / 1e6)

        if _is_file(args.output):
            write_ckpt(Path(args.output), source, ours, args.format, told)
        else:
            with new_directory(args.output, overwrite=args.overwrite) as directory:
                write(directory, source, ours, args.format, limit, told)
    print(f"{args.output}: {len(ours.specs)} tensors, {total:,.1f} MB, layout {args.format}")


def _convert_release(spec: ModelSpec, places: Places, args: Namespace, limit: int | None) -> int:
    """Converts a release; where the same stands already it is compared and left alone."""
    from lm_core.checkpoint.layout import Cast

    args.format = args.format or ("mindformers" if _is_file(args.output) else "native")
    _check_format(args)
    source, tensors = slices.opened(spec, places, args.output, args.format, _config(args.config))
    ours = Cast(tensors, args.dtype) if args.dtype else tensors
    if not args.overwrite and slices.is_there(args.output):
        slices.require_same(source, ours, args.output, args.format)
        print(f"{args.output}: is there already; {len(ours.specs)} tensors are the same")
        return 0
    _convert(source, ours, args, limit)
    return 0


def _is_file(output: str) -> bool:
    return output.endswith(".ckpt")


def _check_format(args: Namespace) -> None:
    """Raises CheckpointError if what is to be written has no such files; fills in the format."""
    if _is_file(args.output):
        if (args.format or "mindformers") != "mindformers":
            raise CheckpointError(
                f"format: is {args.format} and {args.output} a .ckpt file, which has the layout "
                f"mindformers; give a directory for {args.format}"
            )
        args.format = "mindformers"
    elif args.format is None:
        raise CheckpointError("format: is missing; must say whose names and files; add --format")
    if args.max_shard_size and args.format not in ("native", "hf"):
        raise CheckpointError(
            f"max_shard_size: the layout {args.format} is a single file, which is not sharded; "
            f"leave --max_shard_size out"
        )


def _check_absent(args: Namespace) -> None:
    """Raises CheckpointError if a file is there; `new_directory` looks at directories."""
    if _is_file(args.output) and Path(args.output).exists() and not args.overwrite:
        raise CheckpointError(
            f"{args.output}: is there already; it is replaced only if asked; pass --overwrite "
            f"or choose another name"
        )


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
    elif (release := source.spec.tables[layout].release) is not None:
        write_release(directory, source, ours, layout, release, progress)
    else:
        file = directory / f"{source.spec.name}.ckpt"
        write_ckpt(file, source, ours, layout, progress)
        io.write_config(directory, source.spec.name, source.config, {"name": layout, **notes})
    folder = source.path.parent if source.path and source.path.is_file() else source.path
    for name, path in io.carried_files(folder or Path()).items():
        io.add_file(directory / name, path)
    if layout == "hf":
        complete_hf(directory, source)


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


def complete_hf(directory: Path, source: Source) -> None:
    """Adds what `transformers` looks for beside weights and vocabulary, where it is not there."""
    generation = directory / "generation_config.json"
    if not generation.exists() and not source.config.is_classifier:
        values = json.dumps(source.config.generation_to_hf(), indent=2, sort_keys=True)
        generation.write_text(f"{values}\n")
    if source.spec.hf_tokenizer is not None:
        for name, text in source.spec.hf_tokenizer(directory).items():
            (directory / name).write_text(text, encoding="utf-8")


def write_release(
    directory: Path,
    source: Source,
    ours: Tensors,
    layout: str,
    release: Release,
    progress: Progress | None,
) -> None:
    """Writes the description of the model's authors and their names in one safetensors file."""
    from lm_core.checkpoint import tensorfile
    from lm_core.checkpoint.source import table_of

    text = json.dumps(release.write(source.config), indent=2) + "\n"
    theirs = table_of(source.spec, layout).save(ours, source.config)
    theirs.metadata = {"format": "pt"}
    (directory / release.description).write_text(text)
    tensorfile.write(directory / f"{release.files}.safetensors", theirs, progress=progress)


def write_ckpt(
    file: Path, source: Source, ours: Tensors, layout: str, progress: Progress | None
) -> None:
    """Writes a MindSpore .ckpt with the names of `layout`."""
    from lm_core.checkpoint import ckpt
    from lm_core.checkpoint.source import table_of

    ckpt.write(file, table_of(source.spec, layout).save(ours, source.config), progress)


def _config(name: str | None) -> ModelConfig | None:
    if name is None:
        return None
    from lm_core.auto import AutoConfig

    return AutoConfig.from_pretrained(name)
