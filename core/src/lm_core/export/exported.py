"""Runs an export with MindSpore: no network is built, and no code of the model is needed.

A graph that MindSpore loads has parameters of its own, so two graphs have two copies of weights and
two of caches. `Parameter.set_data` makes one take the memory of the other: what the prefill writes
into its caches the increment reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from lm_core.checkpoint import hub
from lm_core.config.model import ModelConfig
from lm_core.errors import CheckpointError, ConfigError, GenerationError
from lm_core.export import description as described
from lm_core.export.description import Description
from lm_core.generation.cache import Reorder, rounded
from lm_core.generation.generate import Decoder, generate
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext


class ExportedModel:
    """What `generate` and pipelines need of a model, from files.

    Args:
        directory: of the export.
        config: the architecture, with the settings of generation; None: as it was exported.
        context: the place of this process; None: that which `init_context` found.
        lite: the settings for MindSpore Lite; None: MindSpore runs the graphs.
        device_id: of Lite.

    Attributes:
        description: the sizes of the graphs.

    Raises:
        CheckpointError: files are missing, damaged, or of another version of MindSpore.
        ConfigError: the processes that run are not those of the export.
    """

    def __init__(
        self,
        directory: str | Path,
        config: ModelConfig | None = None,
        *,
        context: ParallelContext | None = None,
        lite: str | Path | None = None,
        device_id: int = 0,
    ) -> None:
        backend.setup()
        self.context = context or ParallelContext.current()
        # Processes of Lite do not know each other: each is given the folder of its own rank.
        self.description = described.read(directory, self.context.rank if lite is None else None)
        if lite is None:
            _check_ranks(self.description, self.context)
        folder = described.check(directory, self.description)
        own = config or hub.described(folder, None, None).config
        self.config = own.copy(checkpoint_name_or_path=str(folder))
        self._decoder = _open(folder, self.description, lite, device_id)

    def decoder(self, rows: int, length: int) -> Decoder:
        """What computes the logits of so many rows.

        Raises:
            GenerationError: the graphs have fewer rows.
        """
        described.check_rows(self.description.batch_size, rows)
        return self._decoder

    def generate(
        self, input_ids: Any, generation_config: Any = None, streamer: Any = None, **options: Any
    ) -> list[np.ndarray]:
        """Continues prompts; see `lm_core.generation.generate.generate`."""
        return generate(self, input_ids, generation_config, streamer, **options)


def _check_ranks(description: Description, context: ParallelContext) -> None:
    wanted = description.model_parallel
    if wanted > 1 and description.rank != context.rank:
        raise ConfigError(
            f"mindir: holds the part of rank {description.rank}; this process is rank "
            f"{context.rank}; give the folder above the rank_R folders"
        )
    if context.model_parallel != wanted:
        raise ConfigError(
            f"mindir: was exported for model_parallel {wanted}; this process is one of "
            f"{context.model_parallel}; start {wanted} process(es), or export again"
        )


def _open(
    folder: Path, description: Description, lite: str | Path | None, device_id: int
) -> Decoder:
    if lite is not None:
        from lm_core.export.lite import LiteGraphs, require

        require(description)
        return FixedDecoder(LiteGraphs(folder, description, lite, device_id), description)
    if description.dynamic:
        return OpenDecoder(_load(folder / description.graphs.both), description)
    return FixedDecoder(TwoGraphs(folder, description), description)


class _Caches:
    """The caches of a loaded graph, whose rows can change places.

    Args:
        graph: has them.
        rows: of the caches.
    """

    def __init__(self, graph: nn.GraphCell, rows: int) -> None:
        own = {p.name: p for p in graph.get_parameters()}
        layers = range(sum(name.startswith("k_cache.") for name in own))
        k_caches, v_caches = (
            ParameterTuple([own[f"{kind}_cache.{i}"] for i in layers]) for kind in "kv"
        )
        self.rows, self.heads = rows, k_caches[0].shape[0] // rows
        self.change = Reorder(k_caches, v_caches)

    def reorder(self, index: np.ndarray) -> None:
        """Row b gets what row index[b] held; those behind them stay."""
        whole = np.concatenate((index, np.arange(len(index), self.rows))).astype(np.int32)
        places = whole[:, None] * self.heads + np.arange(self.heads, dtype=np.int32)
        self.change(Tensor(places.reshape(-1)))


class TwoGraphs:
    """Prefill and increment, over parameters that they share."""

    def __init__(self, folder: Path, description: Description) -> None:
        self.graphs = {
            "prefill": _load(folder / description.graphs.prefill),
            "increment": _load(folder / description.graphs.increment),
        }
        own = {p.name: p for p in self.graphs["prefill"].get_parameters()}
        for parameter in self.graphs["increment"].get_parameters():
            parameter.set_data(own[parameter.name])
        self.reorder = _Caches(self.graphs["increment"], description.batch_size).reorder

    def __call__(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        """The logits that a graph gives for int32 inputs."""
        return self.graphs[name](*[Tensor(one) for one in inputs]).asnumpy()


class FixedDecoder:
    """Generates with two graphs of fixed sizes; see CachedDecoder for the methods."""

    def __init__(self, graphs: Any, description: Description) -> None:
        self.graphs = graphs
        self.batch, self.capacity = description.batch_size, description.seq_length

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows, length = input_ids.shape
        padded = np.zeros((self.batch, self.capacity), np.int32)
        padded[:rows, :length] = input_ids
        return self.graphs("prefill", padded, self._row(lengths, 1))[:rows]

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        row = self._row(tokens, 0), self._row(positions, 0)
        return self.graphs("increment", *row)[: len(tokens)]

    def reorder(self, index: np.ndarray) -> None:
        if not hasattr(self.graphs, "reorder"):
            raise GenerationError(
                "num_beams: MindSpore Lite keeps the caches to itself; must be 1 with --lite; "
                "remove it"
            )
        self.graphs.reorder(index)

    def _row(self, values: np.ndarray, rest: int) -> np.ndarray:
        """int32 [B]; rows that nobody asked for are given `rest`."""
        row = np.full(self.batch, rest, np.int32)
        row[: len(values)] = values
        return row


class OpenDecoder:
    """Generates with one graph; MindSpore compiles it for each shape that it is called with."""

    def __init__(self, graph: nn.GraphCell, description: Description) -> None:
        self.graph, self.capacity = graph, description.seq_length
        self.reorder = _Caches(graph, description.batch_size).reorder

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows, length = input_ids.shape
        padded = np.zeros((rows, rounded(length, self.capacity)), np.int32)
        padded[:, :length] = input_ids
        positions = np.tile(np.arange(padded.shape[1]), (rows, 1))
        return self._append(padded, positions, lengths - 1)

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._append(tokens[:, None], positions[:, None], np.zeros(len(tokens)))

    def _append(self, *inputs: np.ndarray) -> np.ndarray:
        return self.graph(*(Tensor(values.astype(np.int32)) for values in inputs)).asnumpy()


def _load(path: Path) -> nn.GraphCell:
    try:
        return nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: MindSpore {ms.__version__} cannot load it "
            f"({str(error).strip().splitlines()[0]}); must be a graph of this version; export again"
        ) from error
