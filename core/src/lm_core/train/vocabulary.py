"""Which vocabulary a run means: it may be named in several sections, or lie beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.checkpoint import hub
from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.data import TokenizerConfig
    from lm_core.config.schema import RunConfig
    from lm_core.tokenizer.base import Tokenizer


def named(run: RunConfig) -> str:
    """The folder of the vocabulary that a run names, "" where it names none.

    A section about data is asked only if its file is there: other data may be what is used.
    """
    found = [_folder(run.processor.tokenizer)]
    for section in (run.train_dataset.tokenizer, run.eval_dataset.tokenizer):
        if Path(section.vocab_file or "nowhere").exists():
            found.append(_folder(section))
    return next(filter(None, found), "")


def encoder(run: RunConfig, which: str, given: str, weights: str) -> Tokenizer:
    """What encodes the texts of a section.

    Args:
        run: the run.
        which: `train_dataset` or `eval_dataset`.
        given: a folder that goes before all that the run says; "" for none.
        weights: where it lies if nobody names one; "" for nowhere.

    Raises:
        ConfigError: there is none.
        CheckpointError: the folder has no such files.
        TokenizerError: they cannot be read.
    """
    section = getattr(run, which).tokenizer
    if not given and section.vocab_file and not Path(section.vocab_file).exists():
        raise ConfigError(
            f"{which}.tokenizer.vocab_file: {section.vocab_file} does not exist; must be the "
            f"vocabulary that encodes the texts; set it, or null to use the one beside the weights"
        )
    folder = given or _folder(section) or named(run) or weights
    if not folder:
        raise ConfigError(
            f"{which}.tokenizer.vocab_file: is missing; must be the vocabulary that encodes the "
            f"texts; set it, or give --load_checkpoint DIR with one beside the weights"
        )
    return hub.family_of(run.model.config).tokenizer(hub.tokenizer_directory(folder)[1])


def _folder(section: TokenizerConfig) -> str:
    path = Path(section.vocab_file or "")
    return str(path if path.is_dir() else path.parent) if section.vocab_file else ""
