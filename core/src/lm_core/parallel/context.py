"""Which part of the model and of the data this process holds, and whom it shares it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_core.config.parallel import ParallelConfig
from lm_core.errors import ConfigError
from lm_core.log import notice_once
from lm_core.parallel.machine import job_rank, job_size

if TYPE_CHECKING:
    from lm_core.config.schema import ContextConfig, ParallelContextConfig


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """Degrees of parallelism and the place of this process among them.

    `rank = (stage * data_parallel + dp_rank) * model_parallel + tp_rank`, the order of MindSpore's
    strategy files. Degree 1 everywhere is the ordinary single-process model: no collective enters
    its graph. Networks can be built for any rank in any process; to run, those of several ranks
    need `backend.join`, which makes the groups that are named here.
    """

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    rank: int = 0
    vocab_emb_dp: bool = True
    optimizer_shard: bool = False
    gradient_aggregation_group: int = 4
    micro_batch_num: int = 1

    @classmethod
    def local(cls) -> ParallelContext:
        """One process, one device, nothing to initialise."""
        return cls()

    @staticmethod
    def current() -> ParallelContext:
        """The place of this process among those that `init_context` joined; else alone."""
        return _place

    @classmethod
    def from_config(
        cls, config: ParallelConfig, world_size: int = 1, rank: int = 0
    ) -> ParallelContext:
        """The context of `rank` among `world_size` processes.

        Raises:
            ConfigError: the degrees do not multiply to the number of processes.
        """
        product = config.world_size
        if product != world_size:
            raise ConfigError(
                f"parallel_config: data_parallel {config.data_parallel} x model_parallel "
                f"{config.model_parallel} x pipeline_stage {config.pipeline_stage} = {product} but "
                f"{world_size} process(es) run; the product must be {world_size}: change the "
                f"degrees or the number of processes"
            )
        return cls(
            config.data_parallel,
            config.model_parallel,
            config.pipeline_stage,
            rank,
            vocab_emb_dp=config.vocab_emb_dp,
            optimizer_shard=bool(config.optimizer_shard),
            gradient_aggregation_group=config.gradient_aggregation_group,
            micro_batch_num=config.micro_batch_num if config.pipeline_stage > 1 else 1,
        )

    @property
    def degrees(self) -> ParallelConfig:
        """The same as a section of a run."""
        return ParallelConfig(
            data_parallel=self.data_parallel,
            model_parallel=self.model_parallel,
            pipeline_stage=self.pipeline_stage,
            micro_batch_num=self.micro_batch_num,
            vocab_emb_dp=self.vocab_emb_dp,
            optimizer_shard=self.optimizer_shard,
            gradient_aggregation_group=self.gradient_aggregation_group,
        )

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def cuts_weights(self) -> bool:
        """Whether a rank holds less than the whole model."""
        return self.model_parallel * self.pipeline_stage > 1

    @property
    def tp_rank(self) -> int:
        """Place among the ranks that share each layer's weights."""
        return self.rank % self.model_parallel

    @property
    def dp_rank(self) -> int:
        """Place among the ranks that read different data."""
        return self.rank // self.model_parallel % self.data_parallel

    @property
    def stage(self) -> int:
        """Pipeline stage, 0 holds the embedding."""
        return self.rank // (self.model_parallel * self.data_parallel)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the tables."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the last norm and the head."""
        return self.stage == self.pipeline_stage - 1

    @property
    def tp_group(self) -> str:
        """The ranks that share each layer's weights; "" for this one alone."""
        return self._group("tp", self.stage, self.dp_rank) if self.model_parallel > 1 else ""

    @property
    def dp_group(self) -> str:
        """The ranks that hold the same weights and read different data; "" for this one alone."""
        return self._group("dp", self.stage, self.tp_rank) if self.data_parallel > 1 else ""

    @property
    def model_group(self) -> str:
        """The ranks that together hold one copy of the model; "" for this one alone."""
        return self._group("model", self.dp_rank) if self.cuts_weights else ""

    @property
    def ends_group(self) -> str:
        """The two ranks that hold the same part of a tied table; "" for all others."""
        at_an_end = self.is_first_stage != self.is_last_stage
        return self._group("ends", self.dp_rank, self.tp_rank) if at_an_end else ""

    @property
    def world_group(self) -> str:
        """All ranks; "" for this one alone."""
        return self._group("world") if self.world_size > 1 else ""

    def sharers(self, parts: int) -> tuple[str, list[int]]:
        """Group of the tensor-parallel ranks that hold the same one of `parts` parts as this one.

        Args:
            parts: of a weight, fewer than `model_parallel` (heads of keys and values).

        Returns:
            name and ranks.
        """
        size = self.model_parallel // parts
        part = self.tp_rank // size
        ranks = [self.rank_at(tp=part * size + place) for place in range(size)]
        return self._group("kv", parts, self.stage, self.dp_rank, part), ranks

    def pair_group(self, stage: int) -> str:
        """The rank of `stage` and that of the next one between which activations pass."""
        return self._group("pair", stage, self.dp_rank, self.tp_rank)

    def _group(self, kind: str, *place: int) -> str:
        """A name that no group of other ranks has, under other degrees either."""
        degrees = (self.data_parallel, self.model_parallel, self.pipeline_stage)
        return "-".join([kind, "x".join(map(str, degrees)), *map(str, place)])

    def rank_at(self, *, stage: int | None = None, dp: int | None = None, tp: int = -1) -> int:
        """The rank at another place, this one's where nothing is said."""
        stage, dp = self.stage if stage is None else stage, self.dp_rank if dp is None else dp
        tp = self.tp_rank if tp < 0 else tp
        return (stage * self.data_parallel + dp) * self.model_parallel + tp

    def groups(self) -> Iterator[tuple[str, list[int]]]:
        """Name and ranks of every group that this rank is in, in one order for all ranks."""
        stages, dps = range(self.pipeline_stage), range(self.data_parallel)
        tps, last = range(self.model_parallel), self.pipeline_stage - 1
        if self.world_group:
            yield self.world_group, list(range(self.world_size))
        if self.model_group:
            yield self.model_group, [self.rank_at(stage=s, tp=t) for s in stages for t in tps]
        if self.tp_group:
            yield self.tp_group, [self.rank_at(tp=t) for t in tps]
        if self.dp_group:
            yield self.dp_group, [self.rank_at(dp=d) for d in dps]
        if self.ends_group:
            yield self.ends_group, [self.rank_at(stage=0), self.rank_at(stage=last)]
        for stage in range(max(0, self.stage - 1), min(self.stage + 1, last)):
            both = [self.rank_at(stage=stage), self.rank_at(stage=stage + 1)]
            yield self.pair_group(stage), both

    def shard(self, size: int, what: str) -> int:
        """The part of `size` that one tensor-parallel rank holds.

        Raises:
            ConfigError: `model_parallel` does not divide `size`.
        """
        if size % self.model_parallel:
            usable = ", ".join(str(n) for n in range(1, min(size, 1024) + 1) if size % n == 0)
            raise ConfigError(
                f"parallel_config.model_parallel: {self.model_parallel} does not divide {size} "
                f"{what}; use one of {usable}"
            )
        return size // self.model_parallel


def init_context(
    use_parallel: bool = False,
    context_config: ContextConfig | dict[str, object] | None = None,
    parallel_config: ParallelConfig | ParallelContextConfig | None = None,
) -> tuple[int, int]:
    """Prepares MindSpore for this process and returns `(rank, number of processes)`.

    Args:
        use_parallel: join the other processes of the job.
        context_config: an object or mapping with `device_id`; of a `device_target` that is not
            there it is said that the CPU is used; other keys have no effect.
        parallel_config: the degrees, checked against the number of processes. From then on
            `AutoModel` gives this process its part of a model. None, or MindSpore's own switches,
            which say no degrees: those of its configuration decide when `AutoModel.from_config`
            makes the first model; where they are 1, every process has whole ones.
            As in a run, degrees mean nothing without `use_parallel`.

    Raises:
        ConfigError: this process is none of several, or the degrees are of another number.
    """
    from lm_core.parallel import backend

    given = context_config or {}
    given = given if isinstance(given, dict) else vars(given)
    device, target = given.get("device_id"), given.get("device_target")
    if target in ("Ascend", "GPU") and backend.on_cpu():
        notice_once("device_target", f"device_target: no {target} here; computing on the CPU")
    if not use_parallel:
        _check_alone()
        backend.setup(device if isinstance(device, int) else 0)
        return 0, 1
    global _joined
    _joined = rank, size = backend.join()
    if isinstance(parallel_config, ParallelConfig):
        take_place(parallel_config, size, rank)
    return rank, size


_place = ParallelContext()
_joined = (0, 1)
"""The rank of this process and how many there are, as far as `init_context` has joined them."""


def get_real_rank() -> int:
    """The number of this process among all of its job; 0 where it is alone."""
    rank, size = _joined
    return rank if size > 1 else job_rank()


def place_by(degrees: ParallelConfig) -> ParallelContext:
    """The place of this process; `degrees` decide it where `init_context` was given none.

    Raises:
        ConfigError: they do not multiply to the number of processes.
    """
    rank, size = _joined
    if _place.world_size == 1 < size and degrees.world_size > 1:
        return take_place(degrees, size, rank)
    return _place


def take_place(degrees: ParallelConfig, size: int, rank: int) -> ParallelContext:
    """Makes a place among the processes of the job the one that `ParallelContext.current` gives.

    All ranks must call it with the same degrees.

    Raises:
        ConfigError: the degrees do not multiply to the number of processes.
    """
    global _place
    context = ParallelContext.from_config(degrees, size, rank)
    if size > 1:
        from lm_core.parallel import backend

        backend.make_groups(context.groups())
    _place = context
    return context


def _check_alone() -> None:
    if job_size() > 1:
        raise ConfigError(
            f"use_parallel: is false but this is one of {job_size()} processes, which would all "
            f"write the same files; set use_parallel: True or start one process"
        )
