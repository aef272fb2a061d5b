"""The section of a run about questions with answers: from its keys to records."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lm_core.data.adgen import ORIGIN, AnswerRecords, find_file
from lm_core.data.answers import Lengths, check_tokenizer
from lm_core.errors import ConfigError, DataError, all_of
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.config.data import DatasetConfig
    from lm_core.config.schema import RunConfig
    from lm_core.tokenizer.base import Tokenizer

LOADER = "ADGenDataLoader"
FILES = {"train_dataset": "train.json", "eval_dataset": "dev.json"}
"""What is read of a folder."""


def lengths(run: RunConfig, which: str) -> Lengths:
    """Most tokens of prompts and answers.

    Raises:
        ConfigError: the section does not say, is of another version, or names no two columns.
    """
    section: DatasetConfig = getattr(run, which)
    loader, found = section.data_loader, []
    for name, card in (("max_source_length", 64), ("max_target_length", 128)):
        if getattr(section, name) is None:
            what = "prompt" if "source" in name else "answer"
            found.append(
                f"{which}.{name}: is missing; must be the tokens of the longest {what}; set it "
                f"(the model card trains with {card})"
            )
    if loader.version not in (None, 2):
        found.append(
            f"{which}.data_loader.version: is {loader.version}, the form of records of ChatGLM-6B "
            f"(GLM-1), which is not built; must be 2; change it"
        )
    if loader.origin_columns is not None and len(loader.origin_columns) != 2:
        found.append(
            f"{which}.data_loader.origin_columns: are {len(loader.origin_columns)}; must be two: "
            f"the question's and the answer's; use {list(ORIGIN)} for ADGEN"
        )
    if run.model.config.is_classifier:
        found.append(
            f"{which}.data_loader.type: {LOADER} reads texts without classes; must be MindDataset "
            f"for text classification; change it"
        )
    if found:
        raise ConfigError(*found)
    assert section.max_source_length and section.max_target_length
    return Lengths(section.max_source_length, section.max_target_length)


def open_answers(run: RunConfig, which: str, tokenizer: Callable[[], Tokenizer]) -> AnswerRecords:
    """The records that `train_dataset` or `eval_dataset` describes.

    Those of training are as long as the model needs (seq_length + 1), others as short as they can
    be.

    Raises:
        LmError: a key is wrong, the file or the tokenizer cannot be read, or the model is too short
            for the records.
    """
    section: DatasetConfig = getattr(run, which)
    most = lengths(run, which)
    key = f"{which}.data_loader"
    file, encoder, _ = all_of(
        lambda: find_file(section.data_loader.dataset_dir, FILES[which], key),
        tokenizer,
        lambda: _check_room(run, which, most),
    )
    check_tokenizer(encoder, most, f"{which}.")
    return AnswerRecords(
        file,
        encoder,
        most,
        length=run.model.config.seq_length + 1 if which == "train_dataset" else None,
        origin=section.data_loader.origin_columns or ORIGIN,
        train_padding=not section.ignore_pad_token_for_loss,
    )


def with_room(run: RunConfig) -> RunConfig:
    """The run with a `seq_length` that holds what its evaluation section asks for.

    Only where no weight fixes that length; else, and for other data, it is the run itself.
    """
    if run.eval_dataset.data_loader.type != LOADER:
        return run
    config, most = run.model.config, lengths(run, "eval_dataset")
    needed = most.source + max(most.target, config.max_new_tokens or 0)
    wide = config.widened(max(needed, config.max_length or config.max_decode_length or 0))
    if wide is config:
        return run
    get_logger(__name__).info(
        "seq_length is %d for this evaluation, and %d in the run: eval_dataset needs it, and no "
        "weight of this model depends on it", wide.seq_length, config.seq_length,
    )  # fmt: skip
    found = run.model_copy(deep=True)
    found.model.config = wide
    return found


def _check_room(run: RunConfig, which: str, most: Lengths) -> None:
    room = run.model.config.seq_length
    if most.row > room + 1:
        raise DataError(
            f"{which}: max_source_length {most.source} + max_target_length {most.target} + 1 = "
            f"{most.row} ids; must be at most {room + 1}, seq_length and the last target; lower "
            f"one of these or set model.model_config.seq_length={most.row - 1}"
        )
