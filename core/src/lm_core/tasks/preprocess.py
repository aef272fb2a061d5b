"""`preprocess DATASET`: raw data to MindRecord files, or to JSON files that become such."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.checkpoint import atomic
from lm_core.checkpoint.io import TOKENIZER_FILES
from lm_core.checkpoint.source import read_json
from lm_core.data.preprocess import (
    Converter,
    Counts,
    Preprocessor,
    encode_all,
    find_inputs,
    reasons,
)
from lm_core.errors import ConfigError, DataError, LmError, TokenizerError
from lm_core.log import progress

if TYPE_CHECKING:
    import numpy as np

    from lm_core.spec import ModelSpec
    from lm_core.tokenizer.base import Tokenizer

# Starting a process takes half a second, in which one core encodes about this much.
_BYTES_PER_PROCESS = 4 << 20


def spelling(words: Sequence[str]) -> list[str]:
    """`--dataset_type D ...`, as the scripts of model cards say it, as `D ...`.

    Behind the name of a data set the flag is one of that data set.
    """
    if words and not words[0].startswith("-"):
        return list(words)
    flag = ArgumentParser(add_help=False, allow_abbrev=False)
    flag.add_argument("--dataset_type", nargs="?")
    found, rest = flag.parse_known_args(list(words))
    return [found.dataset_type, *rest] if found.dataset_type else list(words)


def add_arguments(parser: ArgumentParser, spec: ModelSpec) -> None:
    """A sub-command for each data set of the model."""
    commands = parser.add_subparsers(
        dest="dataset",
        required=True,
        metavar="DATASET",
        description="`--dataset_type DATASET` means the same",
    )
    for name, data in spec.preprocessors.items():
        command = commands.add_parser(
            name, help=data.help, description=data.help, allow_abbrev=False
        )
        _add_input_arguments(command, data)
        if isinstance(data, Preprocessor):
            _add_record_arguments(command, spec, data)
            data.add_arguments(command)


def _add_input_arguments(command: ArgumentParser, data: Preprocessor | Converter) -> None:
    endings = ", ".join(data.suffixes)
    form = "NAME.mindrecord" if isinstance(data, Preprocessor) else "NAME.json"
    command.add_argument(
        *data.inputs,
        dest="input_file",
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"files, patterns of files, or folders (of which files ending in {endings} are read)",
    )
    command.add_argument(
        *("--output_file", "--output_path"),
        required=True,
        metavar="FILE",
        help=f"the file to write: {form}",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _add_record_arguments(command: ArgumentParser, spec: ModelSpec, data: Preprocessor) -> None:
    command.add_argument(
        *("--num_splits", "--file_partition"),
        type=int,
        default=1,
        metavar="N",
        help="write N files, NAME.mindrecord0 and so on (default: 1)",
    )
    command.add_argument(
        *("--tokenizer", "--model_file"),
        type=lambda word: None if word in data.vocabularies else word,
        action=_Named,
        metavar="PATH",
        help="folder of the vocabulary, or its file there (vocab.json, tokenizer.model)",
    )
    command.add_argument(
        "--tokenizer_type",
        default=spec.name,
        metavar="NAME_OR_DIR",
        help=f"where to find it without --tokenizer: a folder or a name (default: {spec.name})",
    )
    command.add_argument(
        "--num_process",
        type=int,
        metavar="N",
        help="processes that encode (default: up to one per core, by the size of the input)",
    )


class _Named(Action):
    """Stores a path; a word that means the model's own vocabulary leaves what is there."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        if values is not None:
            setattr(namespace, self.dest, values)


def run(spec: ModelSpec, args: Namespace, overrides: Sequence[str] = ()) -> int:
    """Writes the records, or the converted data, and prints the counts.

    Raises:
        LmError: a flag, an input or the vocabulary is wrong; no output was touched.
    """
    if overrides:
        raise ConfigError(f"preprocess: {overrides[0]!r} is not a flag; see preprocess --help")
    data: Preprocessor | Converter = spec.preprocessors[args.dataset]
    lines = _convert(data, args) if isinstance(data, Converter) else _preprocess(spec, data, args)
    for line in lines:
        print(line)
    return 0


def _convert(data: Converter, args: Namespace) -> list[str]:
    """Writes a JSON array. Returns the report."""
    files = find_inputs(args.input_file, data.suffixes, data.inputs[0])
    output = Path(args.output_file)
    if any(output.exists() and output.samefile(file) for file in files):
        raise DataError(f"output_file: {output} is the input too; name another file")
    _check_output(args)
    counts: Counts = Counts()
    size = sum(file.stat().st_size for file in files)
    members = []
    with (
        _terminable(),
        progress(total=size / 1e6, desc=f"preprocess {args.dataset}", unit="MB") as bar,
    ):
        for item in data.convert(files, counts):
            if item.work is not None:
                members.append(item.work)
            bar.update(item.size / 1e6)
        bar.update(size / 1e6 - bar.n)
    if not members:
        raise DataError(f"{output}: there is nothing to write; {reasons(counts)}")
    with atomic.new_file(output) as path:
        path.write_text(json.dumps(members, indent=2) + "\n", encoding="utf-8")
    return list(_counted(args, counts, "dialogues"))


def _preprocess(spec: ModelSpec, preprocessor: Preprocessor, args: Namespace) -> list[str]:
    """Writes records. Returns the report."""
    columns = preprocessor.columns(args)
    _check_output(args)
    files = find_inputs(args.input_file, preprocessor.suffixes, preprocessor.inputs[0])
    size = sum(file.stat().st_size for file in files)
    processes = _processes(args.num_process, size)
    tokenizer = _tokenizer(spec, args)
    start = time.perf_counter()
    with _terminable():
        counts = _write(preprocessor, args, files, size, tokenizer, columns, processes)
    seconds = time.perf_counter() - start
    rate = counts["tokens"] / max(seconds, 1e-9)
    spent = f"  time: {seconds:.1f} s, {rate:,.0f} tokens/s, processes: {processes}"
    return [*_counted(args, counts, "records"), spent]


def _check_output(args: Namespace) -> None:
    """Raises DataError where the output, or the first part of it, is there already."""
    output = Path(args.output_file)
    there = [path for path in (output, output.with_name(f"{output.name}0")) if path.exists()]
    if there and not args.overwrite:
        raise DataError(
            f"output_file: {there[0]} is there already; it is replaced only if asked; pass "
            f"--overwrite or choose another name"
        )


def _write(
    preprocessor: Preprocessor,
    args: Namespace,
    files: Sequence[Path],
    size: int,
    tokenizer: Tokenizer,
    columns: Sequence[str],
    processes: int,
) -> Counts:
    from lm_core.data.mindrecord import RecordWriter

    counts: Counts = Counts()
    options = _picklable(args)
    check = _vocabulary_check(args)
    with (
        RecordWriter(args.output_file, columns, args.num_splits) as writer,
        progress(total=size / 1e6, desc=f"preprocess {args.dataset}", unit="MB") as bar,
    ):
        items = preprocessor.read(files, args, tokenizer, counts)
        encoded = encode_all(
            preprocessor, items, tokenizer, options, processes, lambda n: bar.update(n / 1e6)
        )
        for row in preprocessor.records(encoded, args, tokenizer, counts):
            check(row["input_ids"])
            writer.write(row)
        bar.update(size / 1e6 - bar.n)  # line ends and what was left out
    return counts


def _processes(wanted: int | None, size: int) -> int:
    if wanted is None:
        return min(os.cpu_count() or 1, 1 + size // _BYTES_PER_PROCESS)
    if wanted < 1:
        raise ConfigError(
            f"num_process: is {wanted}; must be at least 1; leave it out to use all cores"
        )
    return wanted


def _vocabulary(args: Namespace) -> Path | None:
    """The folder (or file) of the vocabulary that the flags name, None where they name a model."""
    path = Path(args.tokenizer or args.tokenizer_type)
    if path.is_file() and path.name in TOKENIZER_FILES:
        return path.parent
    return path if args.tokenizer or path.is_dir() else None


def _tokenizer(spec: ModelSpec, args: Namespace) -> Tokenizer:
    """The vocabulary from a folder, or by name where a name can be resolved."""
    folder = _vocabulary(args)
    if folder is not None:
        return spec.tokenizer(folder)
    from lm_core.auto import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(args.tokenizer_type, family=spec.name)
    except LmError as error:
        raise TokenizerError(
            f"tokenizer: {error.problems[0]}; or add --tokenizer FOLDER, a folder that holds the "
            f"files of the vocabulary"
        ) from error


def _vocabulary_check(args: Namespace) -> Callable[[np.ndarray], None]:
    """Compares ids [L] with the model that the vocabulary lies beside, if it lies beside one."""
    path = (_vocabulary(args) or Path(args.tokenizer_type)) / "config.json"
    size = read_json(path).get("vocab_size") if path.is_file() else None

    def check(ids: np.ndarray) -> None:
        if isinstance(size, int) and ids.size and ids.max() >= size:
            raise DataError(
                f"tokenizer: gives the id {ids.max()}; {path} says vocab_size {size}, so ids must "
                f"be below that; use the tokenizer of the model, alone or with its config.json"
            )

    return check


def _picklable(args: Namespace) -> Namespace:
    """The flags, for other processes, without what a command line keeps for itself."""
    kinds = (str, int, float, bool, list, tuple, type(None))
    return Namespace(
        **{name: value for name, value in vars(args).items() if isinstance(value, kinds)}
    )


def _counted(args: Namespace, counts: Counts, unit: str) -> Iterator[str]:
    yield f"{args.output_file}: {counts[unit]:,} {unit} from {', '.join(args.input_file)}"
    for name, count in counts.items():
        yield f"  {name}: {count:,}"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block like an exception, so that what is half-written is removed.

    A command does so anyway.
    """

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
