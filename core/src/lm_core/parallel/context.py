"""Which part of the model and of the data this process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.parallel import ParallelConfig


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """Degrees of parallelism and the place of this process among them.

    `rank = (stage * data_parallel + dp_rank) * model_parallel + tp_rank`, the order of MindSpore's
    strategy files. Degree 1 everywhere is the ordinary single-process model: no collective enters
    its graph.
    """

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    rank: int = 0

    @classmethod
    def local(cls) -> ParallelContext:
        """One process, one device, nothing to initialise."""
        return cls()

    @classmethod
    def from_config(
        cls, config: ParallelConfig, world_size: int = 1, rank: int = 0
    ) -> ParallelContext:
        """The context of `rank` among `world_size` processes.

        Raises:
            ConfigError: the degrees do not multiply to the number of processes.
        """
        product = config.data_parallel * config.model_parallel * config.pipeline_stage
        if product != world_size:
            raise ConfigError(
                f"parallel_config: data_parallel {config.data_parallel} x model_parallel "
                f"{config.model_parallel} x pipeline_stage {config.pipeline_stage} = {product} but "
                f"{world_size} process(es) run; the product must be {world_size}: change the "
                f"degrees or the number of processes"
            )
        return cls(config.data_parallel, config.model_parallel, config.pipeline_stage, rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

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
    context_config: object = None,
    parallel_config: ParallelConfig | None = None,
) -> tuple[int, int]:
    """Prepares MindSpore for this process and returns `(rank, number of processes)`.

    Args:
        use_parallel: join the other processes of an `msrun` job.
        context_config: an object or mapping with `device_id`; other keys have no effect.
        parallel_config: the degrees, checked against the number of processes.
    """
    from lm_core.parallel import backend

    if use_parallel:
        raise ConfigError(
            "use_parallel: True needs several processes; this version runs one process; "
            "set use_parallel: False"
        )
    get = (
        context_config.get
        if isinstance(context_config, dict)
        else lambda key, default: getattr(context_config, key, default)
    )
    backend.setup(int(get("device_id", 0) or 0))
    if parallel_config is not None:
        ParallelContext.from_config(parallel_config)
    return 0, 1
