"""The graphs of a model that are written to files, over caches that are part of them.

Those of fixed sizes are the two that generation uses: prefill of whole prompts and a step of one
token. One with open sizes does both: it appends any number of tokens to each row.
"""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from lm_core.export.description import Description, Graphs
from lm_core.generation.cache import new_caches
from lm_core.nn.blockwise import MASKED
from lm_core.nn.decoder import CausalLM


class _Exported(nn.Cell):
    """A graph whose parts are the model and the caches: all that is written to a file."""

    def __init__(self, model: CausalLM, k_caches: ParameterTuple, v_caches: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.k_caches, self.v_caches = model, k_caches, v_caches


class Prefill(_Exported):
    """Fills the caches with whole prompts."""

    def construct(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """See `CausalLM.prefill`."""
        return self.model.prefill(input_ids, lengths, self.k_caches, self.v_caches)


class Increment(_Exported):
    """Appends a token to each row."""

    def construct(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `CausalLM.step`."""
        return self.model.step(tokens, positions, self.k_caches, self.v_caches)


class Append(_Exported):
    """Appends tokens to each row; the number of rows and of tokens may differ from call to call."""

    def __init__(self, model: CausalLM, k_caches: ParameterTuple, v_caches: ParameterTuple) -> None:
        super().__init__(model, k_caches, v_caches)
        attention = model.layers[0].attention
        rows, capacity, _ = k_caches[0].shape
        self.heads = attention.kv_heads
        self.rows = Tensor(np.arange(rows, dtype=np.int32))
        self.several = rows > self.heads
        self.every_head = Tensor(np.arange(self.heads, dtype=np.int32).reshape(1, 1, -1))
        self.places = Tensor(np.arange(capacity, dtype=np.int32).reshape(1, 1, 1, capacity))
        self.slopes = None
        if attention.slopes is not None:
            self.slopes = Tensor(attention.slopes.astype(np.float32).reshape(1, -1, 1, 1))
        self.slice, self.gather = ops.StridedSlice(), ops.Gather()

    def construct(self, input_ids: Tensor, positions: Tensor, last: Tensor) -> Tensor:
        """Appends.

        Args:
            input_ids: int32 [B, S], B at most the rows of the caches; padded on the right.
            positions: int32 [B, S], where each token stands in its row, counted from 0; what is
                padding must lie behind the row's tokens and is overwritten later.
            last: int32 [B], which of the S tokens is a row's last real one.

        Returns:
            logits of these, [B, V].
        """
        model = self.model
        batch, length = input_ids.shape
        flat = positions.reshape((-1,))
        index = self._index(positions.reshape((batch, length, 1)), batch)
        mask = self._mask(positions.reshape((batch, 1, length, 1)))
        x = model.embed(input_ids.reshape((-1,)), flat, Tensor(np.zeros(2, np.int32)))
        tables = model.position_tables(flat)
        for i, layer in enumerate(model.layers):
            x = layer.step(x, self.k_caches[i], self.v_caches[i], index, mask, tables)
        x = model.norm(self.gather(x, self._first(batch) * length + last, 0))
        return model.gathered(model.logits(x) if model.ties_words else model.head.step(x))

    def _first(self, count: int) -> Tensor:
        """int32 [count]: 0, 1 ... An index such as [:count] would put a branch into the graph."""
        return self.slice(self.rows, (0,), (count,), (1,))

    def _index(self, at: Tensor, batch: int) -> tuple[Tensor, ...]:
        """at: int32 [B, S, 1]. Returns what CausalSelfAttention.steps calls `index`."""
        rows = (self._first(batch) * self.heads).reshape((batch, 1, 1)) + self.every_head
        nothing = ops.zeros_like(rows)
        pairs = ops.stack((rows + ops.zeros_like(at), at + nothing), -1).reshape((-1, 2))
        return (pairs, self._first(batch * self.heads)) if self.several else (pairs,)

    def _mask(self, at: Tensor) -> Tensor:
        """at: [B, 1, S, 1]. Returns what CausalSelfAttention.steps adds to scores."""
        mask = (self.places > at).astype(ms.float32) * MASKED
        if self.slopes is None:
            return mask
        return self.slopes * (self.places - at).astype(ms.float32) + mask


def write(model: CausalLM, folder: Path, description: Description) -> Graphs:
    """Writes the graphs of a model.

    Args:
        model: its weights go into the files.
        folder: where.
        description: the sizes.

    Returns:
        the names of the files.
    """
    model.set_train(False)
    if not model.ties_words:
        model.head.prepare()
    caches = new_caches(model, description.batch_size, description.seq_length)
    if description.dynamic:
        inputs = _open_inputs(description)
        return Graphs(both=_save(Append(model, *caches), inputs, folder / "append"))
    batch, length = description.batch_size, description.seq_length
    prompts, row = _ids((batch, length)), _ids((batch,))
    found = Graphs(
        prefill=_save(Prefill(model, *caches), (prompts, row), folder / "prefill"),
        increment=_save(Increment(model, *caches), (row, row), folder / "increment"),
    )
    _store_once(folder)
    return found


def _ids(shape: tuple[int, ...]) -> Tensor:
    return Tensor(np.zeros(shape, np.int32))


def _open_inputs(description: Description) -> tuple[Tensor, ...]:
    shapes = description.shapes()["both"].values()
    return tuple(
        Tensor(shape=[None if size < 0 else size for size in shape], dtype=ms.int32)
        for shape in shapes
    )


def _save(graph: nn.Cell, inputs: tuple[Tensor, ...], path: Path) -> str:
    """Writes a graph; the name of its file. Above 1 GB its weights are in a folder beside it."""
    ms.export(graph, *inputs, file_name=str(path), file_format="MINDIR")
    for made in [*path.parent.glob(f"{path.name}*"), *path.parent.glob(f"{path.name}_*/*")]:
        made.chmod(0o755 if made.is_dir() else 0o644)
    split = path.with_name(f"{path.name}_graph.mindir")
    return split.name if split.is_file() else f"{path.name}.mindir"


def _store_once(folder: Path) -> None:
    """Files of weights of both graphs that are alike become one file with two names."""
    for path in folder.glob("prefill_variables/*"):
        other = folder / "increment_variables" / path.name
        if other.is_file() and filecmp.cmp(path, other, shallow=False):
            other.unlink()
            os.link(path, other)
