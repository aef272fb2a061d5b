"""What every network has, whatever its head: weights by name, initial values, the training loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn
from mindspore.nn.cell import _cell_graph_executor

from lm_core.nn import init
from lm_core.nn.embedding import INVERSE_NORMS, Embedding, TiedEmbedding
from lm_core.nn.linear import Linear
from lm_core.nn.loss import CrossEntropy, VocabParallelCrossEntropy
from lm_core.parallel import backend
from lm_core.parallel.collectives import GatherFromTensorParallel
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import HEAD, TABLE, Cut, cut

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig

DROPOUT_STATE = "dropout_state"
_NO_WEIGHTS = (DROPOUT_STATE, INVERSE_NORMS)
"""Ends of the names of parameters that are no weights."""


class Network(nn.Cell):
    """Base of language models and of classifiers.

    The inputs of a pass are token ids, int32 [B, S]. Where records hold several documents they are
    int32 [B, 3, S]: token ids, positions (counted within each document) and numbers of documents,
    between which nothing is attended.

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
        self.gather_logits = None
        if splits_logits(config, context):
            self.gather_logits = GatherFromTensorParallel(context)
            columns = config.vocab_size // context.model_parallel
            self.cross_entropy = VocabParallelCrossEntropy(columns, context)
        else:
            self.cross_entropy = CrossEntropy()

    def enter(self, inputs: Tensor) -> Tensor:
        """inputs: int32 [B, S] or [B, 3, S]. Returns the input of the first block, [B * S, H]."""
        raise NotImplementedError

    def through(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x: [B * S, H]. Returns what the blocks of this stage make of it."""
        raise NotImplementedError

    def leave(self, x: Tensor) -> Tensor:
        """x: [T, H], output of the last block. Returns it normalised."""
        raise NotImplementedError

    def hidden(self, inputs: Tensor) -> Tensor:
        """inputs: as of `enter`. Returns the normalised output of the last block, [B * S, H]."""
        return self.leave(self.through(self.enter(inputs), inputs))

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H], normalised. Returns [T, V], this rank's part of V, or [T, C] of C classes."""
        raise NotImplementedError

    def whole_logits(self, x: Tensor) -> Tensor:
        """x: [T, H], normalised. Returns float32 [T, V] on every rank."""
        return self.gathered(self.logits(x))

    def gathered(self, logits: Tensor) -> Tensor:
        """[T, V], or this rank's part of V. Returns float32 [T, V] on every rank."""
        found = logits.astype(ms.float32)
        return found if self.gather_logits is None else self.gather_logits(found)

    def loss_terms(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy and number of trained positions, inside a compiled graph.

        Args:
            inputs: as of `enter`.
            labels: int32 [B, S], already aligned: labels[b, t] is the token after inputs[b, t], or
                the class of the row that ends at t; -100 is ignored.

        Returns:
            float32 scalars.
        """
        return self.loss_at_end(self.hidden(inputs), labels)

    def loss_at_end(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss_terms`, from the normalised output of the last block, [B * S, H]."""
        return self.cross_entropy(self.logits(x), labels.reshape((-1,)))

    def token_losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy of each position, float32 [B, S], 0 where it is ignored; see above."""
        losses, _ = self.cross_entropy.of_tokens(
            self.logits(self.hidden(inputs)), labels.reshape((-1,))
        )
        return losses.reshape(labels.shape)

    def named_parameters(self) -> dict[str, Parameter]:
        """The weights by name."""
        return {
            p.name: p for p in self.get_parameters() if p.name.rpartition(".")[2] not in _NO_WEIGHTS
        }

    def initialize(self, seed: int, only: Collection[str] | None = None) -> None:
        """Random initial values from (seed, name, shape); norms and biases keep ones and zeros.

        A rank that holds a part of a weight takes its part of the values of the whole.

        Args:
            seed: of all of them.
            only: names of weights; None: all.
        """
        for cell in self.weighted():
            weight = cell.weight
            if only is None or weight.name in only:
                values = init.normal_part(
                    seed, weight.name, weight.shape, cell.std, cell.cut, cell.tp_rank
                )
                weight.set_data(Tensor(values, weight.dtype))

    def weighted(self) -> Iterator[Linear | Embedding | TiedEmbedding]:
        """The layers with a matrix."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, Linear | Embedding | TiedEmbedding):
                yield cell

    def cuts(self) -> dict[str, Cut]:
        """How tensor parallelism splits each parameter, by name, of those that it splits."""
        found: dict[str, Cut] = {}
        for cell in self.weighted():
            found |= cell.cuts()
        return {name: own for name, own in found.items() if own.dim is not None}

    def partial(self) -> set[str]:
        """Parameters that all tensor-parallel ranks hold and of whose gradient each has a part."""
        found: set[str] = set()
        for cell in self.weighted():
            found |= cell.partial()
        return found

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding table."""
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        return tied and not self.config.is_classifier

    def forget_graphs(self) -> None:
        """After a change of the layers: what is compiled is the network as it was."""
        if self.compile_cache:
            _cell_graph_executor.del_net_res(self, self.compile_cache)
            self.compile_cache.clear()

    def recompute_layers(self) -> None:
        """Keeps the inputs of layers only and computes the rest again in the backward pass."""
        raise NotImplementedError

    def set_dropout(self, seed: int, step: int, first_token: int = 0) -> None:
        """Chooses the dropout masks of the next part of a training step.

        Args:
            seed: of the run.
            step: number of the step.
            first_token: where this part begins in the batch of the step, over all ranks.
        """
        raise NotImplementedError

    def save_pretrained(self, directory: str | Path, **options: Any) -> None:
        """Writes config.json and model.safetensors; see `lm_core.auto.save_pretrained`."""
        from lm_core.auto import save_pretrained

        save_pretrained(self, directory, **options)


def splits_logits(config: ModelConfig, context: ParallelContext) -> bool:
    """Whether each rank computes the logits of its own part of the vocabulary."""
    if context.model_parallel == 1 or config.is_classifier:
        return False
    name = TABLE if getattr(config, "tie_word_embeddings", False) else HEAD
    shape = (config.hidden_size, config.vocab_size)
    return cut(config, context.degrees, name, shape).dim is not None
