"""What every network has, whatever its head: weights by name, initial values, the training loss."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspore import Parameter, Tensor, nn
from mindspore.nn.cell import _cell_graph_executor

from lm_core.nn import init
from lm_core.nn.embedding import Embedding, TiedEmbedding
from lm_core.nn.linear import Linear
from lm_core.nn.loss import CrossEntropy
from lm_core.parallel import backend
from lm_core.parallel.context import ParallelContext

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig

DROPOUT_STATE = "dropout_state"
"""The one parameter that is no weight."""


class Network(nn.Cell):
    """Base of language models and of classifiers.

    Args:
        config: the architecture.
        context: the place of this process.
        auto_prefix: False where the names of inner cells are whole already.
    """

    spec_name: str
    dropout_state: Parameter

    def __init__(
        self, config: ModelConfig, context: ParallelContext, auto_prefix: bool = True
    ) -> None:
        backend.setup()
        super().__init__(auto_prefix=auto_prefix)
        self.config = config
        self.context = context
        self.cross_entropy = CrossEntropy()

    def hidden(self, input_ids: Tensor) -> Tensor:
        """input_ids: int32 [B, S]. Returns the normalised output of the last block, [B * S, H]."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H], normalised. Returns [T, V], or [T, C] of C classes."""
        raise NotImplementedError

    def loss_terms(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy and number of trained positions, inside a compiled graph.

        Args:
            input_ids: int32 [B, S].
            labels: int32 [B, S], already aligned: labels[b, t] is the token after input_ids[b, t],
                or the class of the row that ends at t; -100 is ignored.

        Returns:
            float32 scalars.
        """
        return self.cross_entropy(self.logits(self.hidden(input_ids)), labels.reshape((-1,)))

    def named_parameters(self) -> dict[str, Parameter]:
        """The weights by name, without the dropout state."""
        return {p.name: p for p in self.get_parameters() if p.name != DROPOUT_STATE}

    def initialize(self, seed: int, only: Collection[str] | None = None) -> None:
        """Random initial values from (seed, name, shape); norms and biases keep ones and zeros.

        Args:
            seed: of all of them.
            only: names of weights; None: all.
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, Linear | Embedding | TiedEmbedding):
                weight = cell.weight
                if only is None or weight.name in only:
                    weight.set_data(
                        Tensor(init.normal(seed, weight.name, weight.shape, cell.std), weight.dtype)
                    )

    def forget_graphs(self) -> None:
        """After a change of the layers: what is compiled is the network as it was."""
        if self.compile_cache:
            _cell_graph_executor.del_net_res(self, self.compile_cache)
            self.compile_cache.clear()

    def recompute_layers(self) -> None:
        """Keeps the inputs of layers only and computes the rest again in the backward pass."""
        raise NotImplementedError

    def set_dropout(self, seed: int, step: int) -> None:
        """Chooses the dropout masks of the next training step."""
        raise NotImplementedError

    def save_pretrained(self, directory: str | Path, **options: Any) -> None:
        """Writes config.json and model.safetensors; see `lm_core.auto.save_pretrained`."""
        from lm_core.auto import save_pretrained

        save_pretrained(self, directory, **options)
