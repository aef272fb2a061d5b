"""`preview`: shows records as a model sees them, the part that it is trained on marked.

A token counts as trained where a training step would train it: the same function decides.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_core import spec as registry
from lm_core.checkpoint.io import TOKENIZER_FILES
from lm_core.config.flags import positive
from lm_core.data.packing import SEGMENTS
from lm_core.errors import DataError, LmError
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.data.mindrecord import Row
    from lm_core.data.pipeline import RecordDataset
    from lm_core.tokenizer.base import Tokenizer

SAMPLE = 1000
"""Records that are counted, spread over all of them."""
_PADDING = 4
"""A run of this many equal ids at the end is shown as a number."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb."""
    parser.add_argument("records", metavar="D", help="a record file, or a folder of such")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of the tokenizer (default: the run's, or one beside the records)",
    )
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="the run that the records are for")
    parser.add_argument(
        "--count", type=positive, default=3, metavar="N", help="records to show (default: 3)"
    )
    parser.add_argument(
        "--max_tokens",
        type=positive,
        default=256,
        metavar="N",
        help="tokens to show of each record (default: 256)",
    )


def run(args: Namespace) -> int:
    """Prints what the files hold, and the first records.

    Raises:
        LmError: there are no records, or no such vocabulary or run.
    """
    settings = registry.read_run(args.config) if args.config else None
    from lm_core.data.pipeline import RecordDataset

    records = RecordDataset(args.records)
    tokenizer = _tokenizer(args, settings)
    reader = Reader(records, tokenizer, settings)
    print("\n".join(_summary(reader)))
    show = Painter(tokenizer, args.max_tokens, _coloured())
    for number, row in enumerate(records.stream(range(min(args.count, len(records))))):
        print(f"\nrecord {number}: {reader.describe(number, row)}")
        print(show(row["input_ids"], reader.trained(number, row)))
    return 0


class Reader:
    """Records, and what a training step would make of them.

    Args:
        records: with a column input_ids.
        tokenizer: says what pads and what ends a text, where no run does.
        settings: the run.
    """

    def __init__(
        self, records: RecordDataset, tokenizer: Tokenizer | None, settings: RunConfig | None
    ) -> None:
        if "input_ids" not in records.columns:
            raise DataError(
                f"{records.path}: has no column input_ids; it has {', '.join(records.columns)}; "
                f"write it with the preprocess command"
            )
        self.records = records
        source = tokenizer if settings is None else settings.model.config
        self.end = getattr(source, "eos_token_id", None)
        # A vocabulary without padding, as GPT-2's was published, pads with what ends a text.
        pad = getattr(source, "pad_token_id", None)
        self.pad = self.end if pad is None and settings is None else pad

    def trained(self, number: int, row: Row) -> np.ndarray:
        """Which tokens are targets, bool [L]; none of a record that belongs to a class."""
        from lm_core.train.batch import IGNORED, causal_batch

        self._check(number, row)
        if is_classified(row):
            return np.zeros(row["input_ids"].shape, bool)
        batch = causal_batch({k: v[None] for k, v in row.items()}, self.pad, self.end)
        return np.concatenate(([False], batch[1][0] != IGNORED))

    def _check(self, number: int, row: Row) -> None:
        size = row["input_ids"].size
        for name, value in row.items():
            if value.size != size and not (name == "labels" and is_classified(row)):
                raise DataError(
                    f"{self.records.locate(number)}: {name} holds {value.size} values for {size} "
                    f"ids; must be as many; write the file again"
                )

    def describe(self, number: int, row: Row) -> str:
        """Its length, and what is trained of it."""
        mask = row.get("attention_mask")
        size = row["input_ids"].size
        real = "" if mask is None or mask.all() else f", {int(mask.sum()):,} of them text"
        if is_classified(row):
            return f"label {int(row['labels'].reshape(-1)[0])}, {size:,} ids{real}"
        several = f", documents: {row[SEGMENTS].max():,}" if SEGMENTS in row else ""
        return f"{size:,} ids{real}{several}, {int(self.trained(number, row).sum()):,} trained"


def is_classified(row: Row) -> bool:
    """Whether the label is one number for the whole record."""
    return "labels" in row and row["labels"].size == 1 != row["input_ids"].size


def _summary(reader: Reader) -> Iterator[str]:
    """Files, columns, lengths, and how much is trained."""
    records = reader.records
    count = min(len(records), SAMPLE)
    numbers = np.linspace(0, len(records) - 1, count).astype(int)
    rows = list(records.stream(numbers))
    ids = [row["input_ids"].size for row in rows]
    files = "1 file" if len(records.files) == 1 else f"{len(records.files)} files"
    yield f"{records.path}: {len(records):,} records in {files}"
    yield f"columns: {', '.join(records.columns)}"
    among = "" if count == len(records) else f" (of {count:,} records, evenly spread)"
    yield f"ids in a record: {min(ids):,} to {max(ids):,}, on average {np.mean(ids):,.1f}{among}"
    if is_classified(rows[0]):
        labels = np.array([row["labels"].reshape(-1)[0] for row in rows])
        found = zip(*np.unique(labels, return_counts=True), strict=True)
        yield f"labels: {', '.join(f'{label} ({n:,} times)' for label, n in found)}{among}"
        return
    trained = sum(
        int(reader.trained(int(n), row).sum()) for n, row in zip(numbers, rows, strict=True)
    )
    share = 100 * trained / max(sum(ids), 1)
    yield f"trained: {trained:,} of {sum(ids):,} ids, {share:.1f} %{among}"


class Painter:
    """Ids as text, what is trained green or in brackets.

    Args:
        tokenizer: None shows the ids themselves.
        limit: ids to show of a record.
        coloured: green, else brackets.
    """

    def __init__(self, tokenizer: Tokenizer | None, limit: int, coloured: bool) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.marks = (_GREEN, _PLAIN) if coloured else ("[", "]")

    def __call__(self, ids: np.ndarray, trained: np.ndarray) -> str:
        """ids: int32 [L]; trained: bool [L]."""
        padding = _run_at_end(ids, trained)
        kept = min(len(ids) - padding, self.limit)
        spans = groupby(zip(ids[:kept].tolist(), trained[:kept], strict=True), lambda at: at[1])
        text = "".join(self._span([index for index, _ in span], bool(key)) for key, span in spans)
        left = len(ids) - padding - kept
        more = f" ... {left:,} more ids" if left else ""
        return f"{text.strip() if self.tokenizer is None else text}{more}" + (
            f" ... {padding:,} x id {ids[-1]}" if padding else ""
        )

    def _span(self, ids: list[int], trained: bool) -> str:
        text = " ".join(map(str, ids)) if self.tokenizer is None else self._decode(ids)
        opening, closing = self.marks if trained else ("", "")
        blank = " " if self.tokenizer is None and trained else ""
        return f"{blank}{opening}{text}{closing}{blank}"

    def _decode(self, ids: list[int]) -> str:
        """Text that cannot take over a terminal; ids outside the vocabulary as numbers."""
        assert self.tokenizer is not None
        known = self.tokenizer.vocab_size
        parts = groupby(ids, lambda index: 0 <= index < known)
        text = "".join(
            str(self.tokenizer.decode(list(part), skip_special_tokens=False))
            if inside
            else "".join(f"<id {index}>" for index in part)
            for inside, part in parts
        )
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _run_at_end(ids: np.ndarray, trained: np.ndarray) -> int:
    """Length of the run of one untrained id at the end, 0 where it is short."""
    other = np.flatnonzero((ids != ids[-1]) | trained) if ids.size else np.zeros(0)
    count = len(ids) - (int(other[-1]) + 1 if other.size else 0)
    return count if count >= _PADDING else 0


def _coloured() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _tokenizer(args: Namespace, settings: RunConfig | None) -> Tokenizer | None:
    """The vocabulary that is named; else one that lies near the records and can be read."""
    from lm_core.auto import AutoTokenizer

    family = None if settings is None else settings.model.config
    if args.tokenizer:
        return AutoTokenizer.from_pretrained(args.tokenizer, family=family)
    for folder in _places(Path(args.records), settings):
        try:
            return AutoTokenizer.from_pretrained(folder, family=family)
        except LmError as error:
            get_logger(__name__).warning("%s", error.problems[0])
    get_logger(__name__).info("no vocabulary near the records; ids are shown: add --tokenizer DIR")
    return None


def _places(records: Path, settings: RunConfig | None) -> Iterator[Path]:
    """Folders that hold a vocabulary, those of the run first."""
    found = []
    if settings is not None:
        if settings.processor.tokenizer.vocab_file:
            found.append(Path(settings.processor.tokenizer.vocab_file).parent)
        weights = settings.load_checkpoint or settings.model.config.checkpoint_name_or_path
        found += [Path(weights)] if weights else []
    folder = (records if records.is_dir() else records.parent).absolute()
    for place in (folder, folder.parent):
        found += [place, place / "tokenizer"]
    for place in found:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            yield place
