"""Raw data to records, in several processes, with the same result for any number of them.

A data set is described by a `Preprocessor`: `read` gives work items in order, `encode` turns one
item into ids and knows nothing of the others, `records` takes the results in order and makes rows.
A `Converter` only gives raw data another form, which a preprocessor reads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

Counts = Counter[str]
"""What was read, written and left out, by the words in which it is reported."""
INPUTS = ("--input_file", "--input_glob", "--data_path")
"""Flags that name the input; they mean the same."""
# Characters of an item: 0.05 s of work, so that many processes end at about the same time.
_ITEM = 1 << 17


class Item(NamedTuple):
    """A piece of work, and the bytes of input behind it (for the progress bar)."""

    work: Any
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """How one data set becomes records. The functions must be importable by another process."""

    help: str
    """One line for `preprocess --help`."""
    suffixes: tuple[str, ...]
    """Names of files that are taken from a folder end in one of these."""
    add_arguments: Callable[[ArgumentParser], None]
    """Flags besides the common ones."""
    columns: Callable[[Namespace], Sequence[str]]
    """Columns of the records; also checks the flags."""
    read: Callable[[Sequence[Path], Namespace, Tokenizer, Counts], Iterator[Item]]
    """Runs in the main process and should leave hard work to `encode`."""
    encode: Callable[[Tokenizer, Namespace, Any], Any]
    """Runs in any process, on the `work` of an item."""
    records: Callable[[Iterator[Any], Namespace, Tokenizer, Counts], Iterator[Row]]
    """Rows from the results of `encode`, which come in the order of the items."""
    inputs: tuple[str, ...] = INPUTS
    """Flags that name the input."""
    vocabularies: tuple[str, ...] = ()
    """Words that `--tokenizer` may say beside a path: the model's own vocabulary is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """How one data set becomes the JSON file of another kind."""

    help: str
    """One line for `preprocess --help`."""
    suffixes: tuple[str, ...]
    """Names of files that are taken from a folder end in one of these."""
    convert: Callable[[Sequence[Path], Counts], Iterator[Item]]
    """Members of the file; an item whose work is None is only progress."""
    inputs: tuple[str, ...] = INPUTS
    """Flags that name the input."""


def find_inputs(
    paths: Sequence[str | Path], suffixes: tuple[str, ...], flag: str = INPUTS[0]
) -> list[Path]:
    """Files, and the files with these suffixes below folders, each folder's sorted by name.

    A path that does not exist is a pattern (`*`, `?`, `[...]`, `**`) of files, sorted by name.
    `flag` gave the paths.

    Raises:
        DataError: a path does not exist, a pattern matches no file, or a folder holds no such.
    """
    found: list[Path] = []
    key = flag.removeprefix("--")
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.name.endswith(suffixes)]
            inside = [file for file in inside if file.is_file()]
            if not inside:
                raise DataError(
                    f"{key}: {path} holds no file ending in {', '.join(suffixes)}; "
                    "name a folder that does, or a file"
                )
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        elif has_magic(str(path)):
            found += _matches(str(path), key)
        else:
            raise DataError(f"{key}: {path} does not exist; name a text file or a folder")
    return found


def _matches(pattern: str, key: str) -> list[Path]:
    files = [file for file in map(Path, sorted(glob(pattern, recursive=True))) if file.is_file()]
    if not files:
        raise DataError(f"{key}: {pattern} matches no file; name files that are there")
    return files


def gathered(pieces: Iterable[tuple[Any, int, int]], most: int | None = None) -> Iterator[Item]:
    """Items of many small pieces.

    Args:
        pieces: each as a work of its own, its characters and its bytes.
        most: characters of an item; None: as many as are 0.05 s of work for most tokenizers.
    """
    waiting: list[Any] = []
    characters = size = 0
    for piece, length, part in pieces:
        waiting.append(piece)
        characters += length
        size += part
        if characters >= (most or _ITEM):
            yield Item(waiting, size)
            waiting, characters, size = [], 0, 0
    if waiting:
        yield Item(waiting, size)


def reasons(counts: Counts) -> str:
    """Why nothing was written: what was left out."""
    found = [f"{name}: {n:,}" for name, n in counts.items() if "left out" in name]
    return ", ".join(found) or "the input holds none"


def cut(parts: Iterable[str], tokenizer: Tokenizer, size: int) -> Iterator[str]:
    """Joins and cuts a text to pieces of about `size` characters whose ids add up to the text's.

    A piece becomes longer where the tokenizer cannot be sure of a cut.
    """
    text, wanted = "", size
    for part in parts:
        text += part
        if len(text) < wanted:
            continue
        end = _last_cut(text, tokenizer)
        if end:
            yield text[:end]
        text = text[end:]
        # Looking again only after the text has doubled keeps the search linear.
        wanted = size if end else 2 * len(text)
    if text:
        yield text


def _last_cut(text: str, tokenizer: Tokenizer) -> int:
    places = range(len(text) - 1, 0, -1)
    return next((at for at in places if tokenizer.cuts_at(text[at - 1], text[at])), 0)


def encode_all(
    preprocessor: Preprocessor,
    items: Iterable[Item],
    tokenizer: Tokenizer,
    options: Namespace,
    processes: int,
    report: Callable[[int], Any],
) -> Iterator[Any]:
    """Results of `preprocessor.encode`, in order; `report(bytes)` is called as each is there.

    Raises:
        DataError: a worker was killed.
    """
    if processes == 1:
        for item in items:
            yield preprocessor.encode(tokenizer, options, item.work)
            report(item.size)
        return
    pool = ProcessPoolExecutor(
        processes,
        # A fork of a process that holds MindSpore's threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(preprocessor.encode, tokenizer, options),
    )
    waiting: deque[tuple[Future[Any], int]] = deque()
    try:
        for item in items:
            waiting.append((pool.submit(_encode, item.work), item.size))
            # Enough for all to do while the oldest is waited for, without reading far ahead.
            if len(waiting) >= 4 * processes:
                yield _oldest(waiting, report)
        while waiting:
            yield _oldest(waiting, report)
    except BrokenProcessPool as error:
        raise DataError(
            "num_process: a worker process was killed, perhaps for lack of memory; use fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _oldest(waiting: deque[tuple[Future[Any], int]], report: Callable[[int], Any]) -> Any:
    future, size = waiting.popleft()
    result = future.result()
    report(size)
    return result


_worker: tuple[Callable[[Tokenizer, Namespace, Any], Any], Tokenizer, Namespace]


def _start_worker(
    encode: Callable[[Tokenizer, Namespace, Any], Any], tokenizer: Tokenizer, options: Namespace
) -> None:
    global _worker
    _worker = encode, tokenizer, options
    # Ctrl-C reaches every process of a terminal; the main one decides and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits on a pipe that it holds open itself, so it would outlive a killed parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(work: Any) -> Any:
    encode, tokenizer, options = _worker
    return encode(tokenizer, options, work)
