"""Fills the folder of an export: graphs, and all that is needed to run them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms

from lm_core import __version__
from lm_core.checkpoint import io
from lm_core.export import graphs, lite
from lm_core.export.description import NAME, Description, Made
from lm_core.parallel import backend

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM


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
