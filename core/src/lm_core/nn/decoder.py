"""What every decoder-only language model has: blocks, whole passes, cached steps, the loss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from lm_core.nn import init
from lm_core.nn.blockwise import MASKED
from lm_core.nn.dropout import Dropout, dropout_key
from lm_core.nn.embedding import Head, NormHead, TiedEmbedding, VocabParallelEmbedding
from lm_core.nn.network import DROPOUT_STATE, Network
from lm_core.nn.norm import LayerNorm
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import layers_of

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig


class Block(nn.Cell):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: has `construct`, `prefill` and `step` as CausalSelfAttention.
        mlp: [T, H] -> [T, H].
        attention_norm: normalises before attention.
        mlp_norm: normalises before mlp.
        dropout: rate on both branches.
        site: number of the first of two Dropouts.
        residual_from_norm: take the residual from the norm's output ("post_layernorm_residual").
        norm: normalises what comes from below, for both branches and the residual; None: nothing.
    """

    def __init__(
        self,
        attention: nn.Cell,
        mlp: nn.Cell,
        attention_norm: nn.Cell,
        mlp_norm: nn.Cell,
        *,
        dropout: float,
        site: int,
        residual_from_norm: bool = False,
        norm: nn.Cell | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.attention_dropout = Dropout(dropout, site)
        self.mlp_dropout = Dropout(dropout, site + 1)
        self.residual_from_norm = residual_from_norm
        self.norm = norm

    def below(self, x: Tensor) -> Tensor:
        """x: [T, H], the output of the block below. Returns what this block takes for it."""
        return x if self.norm is None else self.norm(x)

    def construct(
        self,
        x: Tensor,
        batch: int,
        key: Tensor,
        tables: tuple[Tensor, ...],
        segments: tuple[Tensor, ...],
    ) -> Tensor:
        """x: [B * S, H]. Returns [B * S, H]; see CausalSelfAttention for the rest."""
        x = self.below(x)
        normed = self.attention_norm(x)
        x = (normed if self.residual_from_norm else x) + self.attention_dropout(
            self.attention(normed, batch, key, tables, segments), key
        )
        normed = self.mlp_norm(x)
        return (normed if self.residual_from_norm else x) + self.mlp_dropout(self.mlp(normed), key)

    def prefill(
        self,
        x: Tensor,
        batch: int,
        k_cache: Parameter,
        v_cache: Parameter,
        tables: tuple[Tensor, ...],
    ) -> Tensor:
        """As `construct` without dropout, filling the caches."""
        x = self.below(x)
        normed = self.attention_norm(x)
        x = (normed if self.residual_from_norm else x) + self.attention.prefill(
            normed, batch, k_cache, v_cache, tables
        )
        normed = self.mlp_norm(x)
        return (normed if self.residual_from_norm else x) + self.mlp(normed)

    def step(
        self,
        x: Tensor,
        k_cache: Parameter,
        v_cache: Parameter,
        index: Tensor,
        mask: Tensor,
        tables: tuple[Tensor, ...],
    ) -> Tensor:
        """One token per row, x: [B, H]; see CausalSelfAttention.step."""
        x = self.below(x)
        normed = self.attention_norm(x)
        x = (normed if self.residual_from_norm else x) + self.attention.step(
            normed, k_cache, v_cache, index, mask, tables
        )
        normed = self.mlp_norm(x)
        return (normed if self.residual_from_norm else x) + self.mlp(normed)


class CausalLM(Network):
    """Base of all models.

    A subclass builds its layers between `build_table` and `build_end`, in the order in which the
    parameters are to stand, and gives `embed`.

    Attributes:
        config: the architecture, with the generation defaults.
        context: the place of this process.
        embedding: the table of tokens; the first stage has it, and the last where it is the head.
        head: the output head; the last stage of a language model has it, unless it is tied.
        layers: the blocks of this stage.
        norm: the last normalisation; the last stage has it.
        rotary: the angles of positions (lm_core.nn.rope.Rotary); None where positions are learned.
    """

    embedding: VocabParallelEmbedding | TiedEmbedding
    head: Head
    layers: nn.CellList
    norm: nn.Cell
    rotary: nn.Cell | None

    def __init__(self, config: ModelConfig, context: ParallelContext) -> None:
        super().__init__(config, context)
        self.rotary = None
        self.ties_words = bool(getattr(config, "tie_word_embeddings", False))
        self.dropout_state = Parameter(
            Tensor(np.zeros(3, np.int32)), name=DROPOUT_STATE, requires_grad=False
        )
        self._graphs: dict[str, Callable[..., Tensor]] = {}

    def build_table(self) -> None:
        """The table of tokens, if this stage reads them or it is the head of this stage."""
        config, context = self.config, self.context
        if context.is_first_stage or (self.is_tied and context.is_last_stage):
            table = TiedEmbedding if self.ties_words else VocabParallelEmbedding
            self.embedding = table(config.vocab_size, config.hidden_size, context, **self._table)

    def build_end(self, norm: Callable[[], nn.Cell]) -> None:
        """The last norm and the head, if this is the last stage; then initial values (seed 0).

        Args:
            norm: makes the norm.
        """
        config, context = self.config, self.context
        if context.is_last_stage:
            self.norm = norm()
            if not (config.is_classifier or self.ties_words):
                head = NormHead if config.normalised_head else Head
                self.head = head(config.hidden_size, config.vocab_size, context, **self._table)
        if not init.skip_initial_values():
            self.initialize(0)

    @property
    def _table(self) -> dict[str, Any]:
        return {"std": self.config.initializer_range, "dtype": self.config.param_init_type}

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H]. Returns [T, V], or this rank's part of V."""
        return self.embedding.logits(x) if self.ties_words else self.head(x)

    def embed(self, ids: Tensor, positions: Tensor, key: Tensor) -> Tensor:
        """ids, positions: int32 [T]. Returns the input of the first block, [T, H]."""
        raise NotImplementedError

    def enter(self, inputs: Tensor) -> Tensor:
        """inputs: int32 [B, S] or [B, 3, S]. Returns the input of the first block, [B * S, H]."""
        ids = inputs if inputs.ndim == 2 else inputs[:, 0]
        key = dropout_key(self.dropout_state)
        return self.embed(ids.reshape((-1,)), _positions(inputs), key)

    def through(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x: [B * S, H]. Returns what the blocks of this stage make of it."""
        key = dropout_key(self.dropout_state)
        tables = self.position_tables(_positions(inputs))
        segments = () if inputs.ndim == 2 else (inputs[:, 2],)
        for layer in self.layers:
            x = layer(x, inputs.shape[0], key, tables, segments)
        return x

    def position_tables(self, positions: Tensor) -> tuple[Tensor, ...]:
        """What attention is given of positions, in all layers: where they rotate, the angles.

        Args:
            positions: int32 [T].

        Returns:
            cosines and sines of the queries [T * N, D], divided by sqrt(D), and those of the keys
            [T * G, D]; nothing where nothing is turned.
        """
        if self.rotary is None:
            return ()
        attention = self.layers[0].attention
        of_queries = self.rotary(positions, attention.heads, attention.scale)
        return (*of_queries, *self.rotary(positions, attention.kv_heads, 1.0))

    def step_tables(self, positions: Tensor) -> tuple[Tensor, ...]:
        """The same for one token of each row: int32 [B]. Two of float32 [B, D, D], or nothing."""
        if self.rotary is None:
            return ()
        scale = self.layers[0].attention.scale
        return self.rotary.matrices(positions, scale), self.rotary.matrices(positions, 1.0)

    def leave(self, x: Tensor) -> Tensor:
        """x: [T, H], output of the last block. Returns it normalised."""
        return self.norm(x)

    def construct(self, input_ids: Tensor) -> Tensor:
        """input_ids: int32 [B, S] or [B, 3, S]. Returns float32 logits [B, S, V]."""
        shape = (input_ids.shape[0], input_ids.shape[-1], -1)
        return self.whole_logits(self.hidden(input_ids)).reshape(shape)

    def prefill(
        self, input_ids: Tensor, lengths: Tensor, k_caches: ParameterTuple, v_caches: ParameterTuple
    ) -> Tensor:
        """Runs whole prompts and fills the caches.

        Args:
            input_ids: int32 [B, S], padded on the right.
            lengths: int32 [B], real tokens per row, at least 1.
            k_caches: one Parameter [B * G, C, D] per layer, C >= S.
            v_caches: the same.

        Returns:
            logits of each row's last real token, [B, V].
        """
        batch, length = input_ids.shape
        positions = _positions(input_ids)
        x = self.embed(input_ids.reshape((-1,)), positions, Tensor(np.zeros(2, np.int32)))
        tables = self.position_tables(positions)
        for i, layer in enumerate(self.layers):
            x = layer.prefill(x, batch, k_caches[i], v_caches[i], tables)
        if not self.ties_words:
            self.head.prepare()
        last = Tensor(np.arange(batch, dtype=np.int32) * length) + lengths - 1
        return self.whole_logits(self.norm(ops.gather(x, last, 0)))

    def step(
        self, tokens: Tensor, positions: Tensor, k_caches: ParameterTuple, v_caches: ParameterTuple
    ) -> Tensor:
        """One cached token per row.

        Args:
            tokens: int32 [B].
            positions: int32 [B], where each token stands in its row, counted from 0.
            k_caches: one Parameter [B * G, C, D] per layer.
            v_caches: the same.

        Returns:
            logits, [B, V].
        """
        batch = tokens.shape[0]
        rows, capacity, _ = k_caches[0].shape
        heads = rows // batch
        at = ops.tile(positions.reshape((batch, 1)), (1, heads)).reshape((rows, 1))
        index = ops.concat((Tensor(np.arange(rows, dtype=np.int32).reshape(-1, 1)), at), 1)
        mask = self.cache_mask(at, capacity)
        x = self.embed(tokens, positions, Tensor(np.zeros(2, np.int32)))
        tables = self.step_tables(positions)
        for i, layer in enumerate(self.layers):
            x = layer.step(x, k_caches[i], v_caches[i], index, mask, tables)
        x = self.norm(x)
        return self.gathered(self.logits(x) if self.ties_words else self.head.step(x))

    def cache_mask(self, at: Tensor, capacity: int) -> Tensor:
        """What is added to the scores of one token of each row.

        Args:
            at: int32 [B * G, 1], its position, once for each head of keys.
            capacity: C.

        Returns:
            float32 [B * G, 1, C], 0 where the row may look and MASKED elsewhere; with linear
            biases [B * G, R, C], and they are in it.
        """
        rows = at.shape[0]
        places = Tensor(np.arange(capacity, dtype=np.int32).reshape(1, -1))
        seen = places <= at
        mask = ((1.0 - seen.astype(ms.float32)) * MASKED).reshape((rows, 1, capacity))
        attention = self.layers[0].attention
        if attention.slopes is None:
            return mask
        own = attention.slopes.astype(np.float32).reshape(attention.kv_heads, -1, 1)
        factors = Tensor(np.tile(own, (rows // attention.kv_heads, 1, 1)))
        distances = (places - at).astype(ms.float32).reshape((rows, 1, capacity))
        return factors * distances + mask

    def forget_graphs(self) -> None:
        """After a change of the layers: what is compiled is the network as it was."""
        super().forget_graphs()
        self._graphs.clear()
        self.__dict__.pop("_decoders", None)

    def recompute_layers(self) -> None:
        """Keeps the inputs of layers only and computes the rest again in the backward pass."""
        for layer in self.layers:
            layer.recompute()
        for _, cell in self.cells_and_names():
            if isinstance(cell, LayerNorm):
                cell.composed = False

    def set_dropout(self, seed: int, step: int, first_token: int = 0) -> None:
        """Chooses the dropout masks of the next part of a training step."""
        state = np.array([seed, step, first_token]) & 0x7FFFFFFF
        self.dropout_state.set_data(Tensor(state.astype(np.int32)))

    def loss(self, input_ids: Any, labels: Any) -> Tensor:
        """Mean cross entropy, a float32 scalar.

        Args:
            input_ids: int32 [B, S].
            labels: int32 [B, S], like input_ids (shifted inside); -100 is ignored.
        """
        graph = self._graphs.setdefault("loss", _MeanLoss(self))
        ids, targets = (
            np.asarray(a.asnumpy() if isinstance(a, Tensor) else a, np.int32)
            for a in (input_ids, labels)
        )
        return graph(Tensor(ids[:, :-1]), Tensor(targets[:, 1:]))

    def generate(
        self, input_ids: Any, generation_config: Any = None, streamer: Any = None, **options: Any
    ) -> list[np.ndarray]:
        """Continues prompts; see `lm_core.generation.generate.generate`."""
        from lm_core.generation.generate import generate

        return generate(self, input_ids, generation_config, streamer, **options)


def _positions(inputs: Tensor) -> Tensor:
    """int32 [B * S]: 0 ... S - 1 for each record, or what `inputs` [B, 3, S] say."""
    if inputs.ndim == 3:
        return inputs[:, 1].reshape((-1,))
    batch, length = inputs.shape
    return Tensor(np.tile(np.arange(length, dtype=np.int32), batch))


class StageLayers(nn.CellList):
    """The blocks of a stage, indexed from 0 and named by their numbers in the whole model.

    Args:
        first: number of the first block.
        blocks: of this stage.
    """

    def __init__(self, first: int, blocks: Sequence[nn.Cell]) -> None:
        super().__init__(blocks)
        numbered = {str(first + place): block for place, block in enumerate(blocks)}
        # Parameters are named after these keys; MindSpore itself always counts from 0.
        object.__setattr__(self, "_cells", OrderedDict(numbered))
        self.update_parameters_name()

    def __getitem__(self, index: int) -> nn.Cell:
        return list(self._cells.values())[index]


def stage_layers(
    config: ModelConfig, context: ParallelContext, build: Callable[[int], nn.Cell]
) -> StageLayers:
    """The blocks of this stage.

    Args:
        config: says how many there are in all.
        context: the place of this process.
        build: makes block `number`.
    """
    own = layers_of(context.stage, config.num_layers, context.pipeline_stage)
    return StageLayers(own.start, [build(number) for number in own])


class _MeanLoss(nn.Cell):
    """Mean of `loss_terms`, as one graph."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        total, count = self.model.loss_terms(input_ids, labels)
        return total / ops.maximum(count, Tensor(1.0, ms.float32))
