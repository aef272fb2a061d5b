"""The folder of an export: graphs, and all that is needed to run them elsewhere.

Ranks fill folders of their own beside its place; when all have, these take the place together. So
no part of an export stands beside parts of another, and one that is replaced is whole till then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms

from lm_core import __version__
from lm_core.checkpoint import atomic, io
from lm_core.errors import CheckpointError
from lm_core.export import graphs, lite
from lm_core.export.description import NAME, Description, Made
from lm_core.parallel import backend, collectives
from lm_core.train.agreement import Agreement

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.parallel.context import ParallelContext


@contextmanager
def place(target: str | Path, context: ParallelContext, overwrite: bool) -> Iterator[Path]:
    """Yields this rank's folder to fill; all become `target` when the blocks of all ranks end.

    Where machines have disks of their own, each has the folders of its ranks.

    Args:
        target: the folder of the export, which holds `rank_R` where there are several.
        context: the place of this process.
        overwrite: replace an export that is there.

    Raises:
        CheckpointError: `target` may not be replaced, or cannot be written.
    """
    target = Path(os.path.realpath(target))
    if context.world_size == 1:
        with atomic.new_directory(target, overwrite=overwrite) as folder:
            yield folder
        return
    own = atomic.sibling(target, "tmp").name.encode()
    shared = target.with_name(bytes(collectives.shared(context, list(own))).decode())
    agreement = Agreement(context)
    try:
        with atomic.new_directory(shared / f"rank_{context.rank}") as folder:
            yield folder
    except CheckpointError as error:
        # Users know the name that the directory was to have.
        named = (problem.replace(shared.name, target.name) for problem in error.problems)
        raise CheckpointError(*named) from error
    agreement.any(False)  # waits for all
    _take_place(shared, target, overwrite)
    agreement.any(False)


def _take_place(shared: Path, target: Path, overwrite: bool) -> None:
    """One rank of each disk moves the folders of all: the one that renames them first."""
    mine = shared.with_name(f"{shared.name}0")
    try:
        shared.rename(mine)
    except FileNotFoundError:
        return
    try:
        with atomic.new_directory(target, overwrite=overwrite) as whole:
            for part in list(mine.iterdir()):
                part.rename(whole / part.name)
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def fill(
    folder: Path, model: CausalLM, description: Description, files: Mapping[str, Path]
) -> None:
    """Writes an export into what `atomic.new_directory` gave.

    Args:
        folder: where.
        model: this rank's part of it.
        description: the sizes; what was written is noted in it.
        files: the tokenizer and generation files that go with the graphs, by name.
    """
    for name, path in files.items():
        io.add_file(folder / name, path)
    description.graphs = graphs.write(model, folder, description)
    description.inputs = description.shapes()
    description.weights = model.config.param_init_type
    description.made = Made(
        lm=__version__, mindspore=ms.__version__, device=backend.device_target()
    )
    own = model.config.copy(seq_length=description.seq_length)
    io.write_config(folder, model.spec_name, own)
    text = description.model_dump_json(indent=2)
    (folder / NAME).write_text(f"{text}\n", encoding="utf-8")
    if not description.dynamic:
        lite.write(folder, description)
