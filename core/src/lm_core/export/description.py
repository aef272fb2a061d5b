"""What an export says of itself (`export.json`), and what must be so to run it.

The folder of an export holds the graphs, this description, config.json (the architecture, and how
it generates by default), the tokenizer and a manifest. Where ranks share the model, each has a
folder `rank_R` of its own.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lm_core.checkpoint import atomic
from lm_core.checkpoint.source import read_json
from lm_core.config.section import NonNegative, Positive, Section
from lm_core.errors import CheckpointError, ConfigError, GenerationError, TokenizerError

NAME = "export.json"
VERSION = 1


class Graphs(Section):
    """File names: `prefill` and `increment`, which are of fixed sizes, or `both`."""

    prefill: str = ""
    increment: str = ""
    both: str = ""


class Made(Section):
    """Where an export was made."""

    lm: str = ""
    mindspore: str = ""
    device: str = ""


class Description(Section):
    """The contents of `export.json`."""

    version: Positive = VERSION
    model: str
    """The package."""
    batch_size: Positive
    """Rows of the caches; of fixed sizes, those of every call."""
    seq_length: Positive
    """Tokens of the longest prompt + answer; of fixed sizes, prompts are padded to it."""
    dynamic: bool = False
    """One graph does both, and rows and tokens of a call may be fewer."""
    graphs: Graphs = Graphs()
    inputs: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    """Shapes of the int32 inputs of each graph, in order; -1 is open."""
    rank: NonNegative = 0
    model_parallel: Positive = 1
    vocab_emb_dp: bool = True
    tokens: Positive | None = None
    """Size of the vocabulary that the model was exported with."""
    weights: str = "float32"
    """Type of the weights."""
    made: Made = Made()

    def shapes(self) -> dict[str, dict[str, list[int]]]:
        """What `inputs` says."""
        batch, length = self.batch_size, self.seq_length
        if self.dynamic:
            rows = 1 if batch == 1 else -1
            return {"both": {"input_ids": [rows, -1], "positions": [rows, -1], "last": [rows]}}
        return {
            "prefill": {"input_ids": [batch, length], "lengths": [batch]},
            "increment": {"tokens": [batch], "positions": [batch]},
        }


def folder_of(directory: str | Path, rank: int | None = None) -> Path:
    """The folder of a rank's export: the directory, or `rank_R` in it.

    Args:
        directory: as users name it.
        rank: which; None: any.

    Raises:
        CheckpointError: there is none.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f"mindir: {directory}: no such directory; must be what `export` wrote; change it"
        )
    if (directory / NAME).is_file():
        return directory
    ranks = sorted(path.parent for path in directory.glob(f"rank_*/{NAME}"))
    found = ranks[:1] if rank is None else [path for path in ranks if path.name == f"rank_{rank}"]
    if found:
        return found[0]
    if ranks:
        raise CheckpointError(
            f"mindir: {directory} has no rank_{rank}; must have a folder for each process; copy "
            f"all of the export, or export it again"
        )
    raise CheckpointError(
        f"mindir: {directory} has no {NAME}; must be a directory that `export` wrote; give its "
        f"--output_dir"
    )


def read(directory: str | Path, rank: int | None = None) -> Description:
    """The description of a rank's export; nothing else of it is read.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder_of(directory, rank) / NAME
    try:
        return Description.parse(read_json(path))
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: {error.problems[0]}; damaged, or of another version of lm; export again"
        ) from None


def check(directory: str | Path, description: Description) -> Path:
    """The folder of a rank's export, all of whose files are as they were written.

    Raises:
        CheckpointError: every file that is missing or damaged.
    """
    folder = folder_of(directory, description.rank)
    if (folder / atomic.MANIFEST).exists():
        atomic.check(folder)
    names = [name for name in description.graphs.model_dump().values() if name]
    missing = [folder / name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            *(f"{path}: missing; {NAME} names it; export again" for path in missing or [folder])
        )
    return folder


def check_rows(rows: int, wanted: int) -> None:
    """Raises GenerationError where so many rows at once are more than an export has."""
    if wanted > rows:
        raise GenerationError(
            f"predict_batch_size: {wanted} rows at once (prompts x beams); the export has {rows}; "
            f"lower it, or export with --batch_size {wanted}"
        )


def check_tokens(description: Description, size: int, where: str) -> None:
    """Raises TokenizerError where a vocabulary is not as large as that of the export."""
    if description.tokens not in (None, size):
        raise TokenizerError(
            f"tokenizer: {where} has {size} tokens; the model was exported with one of "
            f"{description.tokens}; use the tokenizer beside the graphs"
        )
