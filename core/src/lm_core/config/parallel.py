"""How a model is cut over processes, with the keys of the model cards."""

from __future__ import annotations

from typing import Annotated

from lm_core.config.section import NO_EFFECT, Positive, Section


class RecomputeConfig(Section):
    """Which activations the backward pass computes again instead of keeping them."""

    recompute: bool = False
    """Keep only the input of each block."""
    select_recompute: Annotated[bool, NO_EFFECT] = False
    parallel_optimizer_comm_recompute: Annotated[bool, NO_EFFECT] = False
    mp_comm_recompute: Annotated[bool, NO_EFFECT] = True
    recompute_slice_activation: Annotated[bool, NO_EFFECT] = False


class ParallelConfig(Section):
    """Degrees of parallelism; their product is the number of processes."""

    data_parallel: Positive = 1
    model_parallel: Positive = 1
    """Tensor parallelism: the ranks among which each layer's weights are cut."""
    pipeline_stage: Positive = 1
    expert_parallel: Positive = 1
    micro_batch_num: Positive = 1
    """Batches that pass through the pipeline for one update; at least `pipeline_stage`."""
    use_seq_parallel: Annotated[bool, NO_EFFECT] = False
    optimizer_shard: bool | None = None
    """Cut the optimizer state over the data-parallel ranks (ZeRO stage 1)."""
    vocab_emb_dp: bool = True
    """Keep the embedding whole on every rank instead of cutting it by vocabulary."""
    gradient_aggregation_group: Positive = 4
    """Gradients are exchanged in about this many groups."""
    mem_coeff: Annotated[float, NO_EFFECT] = 0.1
    recompute: RecomputeConfig = RecomputeConfig()

    @property
    def world_size(self) -> int:
        """The number of processes that these degrees need."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def micro_batches(self) -> int:
        """Batches of `batch_size` records that a process works on at once, one after the other."""
        return self.micro_batch_num if self.pipeline_stage > 1 else 1
