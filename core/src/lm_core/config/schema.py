"""A run: every top-level key of the model cards, typed, under the canonical names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny

from lm_core.config.data import DatasetConfig, DatasetTask, MetricConfig, Processor
from lm_core.config.model import ModelConfig, Task
from lm_core.config.parallel import ParallelConfig, RecomputeConfig
from lm_core.config.section import NO_EFFECT, Described, NonNegative, Positive, Section
from lm_core.config.training import (
    Callback,
    CheckpointMonitor,
    LossMonitor,
    LrSchedule,
    OptimizerConfig,
    RunnerConfig,
    RunnerWrapper,
    ScaleSense,
)


class AscendConfig(Section):
    """Settings of the Ascend back end."""

    precision_mode: str | None = None
    jit_compile: bool | None = None


def _mode(value: Any) -> Any:
    if isinstance(value, bool):  # equal to 0 or 1 in Python, but nobody means that
        raise ValueError
    return {"GRAPH_MODE": 0, "PYNATIVE_MODE": 1}.get(str(value), value)


class ContextConfig(Section):
    """The device and MindSpore's own settings."""

    mode: Annotated[Literal[0, 1], BeforeValidator(_mode)] = 0
    """0: graphs, 1: operation by operation."""
    device_target: Literal["Ascend", "GPU", "CPU", "auto"] = "auto"
    """What is there, where the named device is not."""
    device_id: NonNegative = 0
    runtime_num_threads: Positive | None = None
    max_device_memory: Annotated[str | None, NO_EFFECT] = None
    max_call_depth: Annotated[Positive, NO_EFFECT] = 10000
    enable_graph_kernel: Annotated[bool, NO_EFFECT] = False
    graph_kernel_flags: Annotated[str | None, NO_EFFECT] = None
    save_graphs: Annotated[bool | int, NO_EFFECT] = False
    save_graphs_path: Annotated[str, NO_EFFECT] = "./graph"
    ascend_config: AscendConfig = AscendConfig()


class StrategyFile(Section):
    """Where the layout of a checkpoint's parts is written."""

    save_file: str = "./ckpt_strategy.ckpt"
    only_trainable_params: bool = True


class ParallelOptimizer(Section):
    """Details of the sharded optimizer."""

    gradient_accumulation_shard: bool = False
    parallel_optimizer_threshold: NonNegative = 64


ModeName = Literal[
    "STAND_ALONE", "DATA_PARALLEL", "SEMI_AUTO_PARALLEL", "AUTO_PARALLEL", "HYBRID_PARALLEL"
]


class ParallelContextConfig(Section):
    """MindSpore's own switches; degrees are in `parallel_config`, collectives do the rest."""

    parallel_mode: Annotated[Literal[0, 1, 2, 3] | ModeName, BeforeValidator(_mode), NO_EFFECT] = 0
    gradients_mean: Annotated[bool, NO_EFFECT] = False
    enable_alltoall: Annotated[bool, NO_EFFECT] = False
    full_batch: Annotated[bool, NO_EFFECT] = True
    loss_repeated_mean: Annotated[bool, NO_EFFECT] = True
    search_mode: Annotated[
        Literal["sharding_propagation", "recursive_programming", "dynamic_programming"], NO_EFFECT
    ] = "sharding_propagation"
    enable_parallel_optimizer: bool = False
    """Cut the optimizer state over data-parallel ranks, as `optimizer_shard` does."""
    strategy_ckpt_save_file: Annotated[str, NO_EFFECT] = "./ckpt_strategy.ckpt"
    strategy_ckpt_load_file: Annotated[str, NO_EFFECT] = ""
    strategy_ckpt_config: Annotated[StrategyFile | None, NO_EFFECT] = None
    parallel_optimizer_config: Annotated[ParallelOptimizer | None, NO_EFFECT] = None


class MoeConfig(Section):
    """Mixtures of experts; only one expert, the plain network, is built."""

    expert_num: Annotated[
        Literal[1], Described("1: mixtures of experts are not built"), NO_EFFECT
    ] = 1
    capacity_factor: Annotated[float, NO_EFFECT] = 1.1
    aux_loss_factor: Annotated[float, NO_EFFECT] = 0.05
    num_experts_chosen: Annotated[Positive, NO_EFFECT] = 1
    expert_group_size: Annotated[int | None, NO_EFFECT] = None
    group_wise_a2a: Annotated[bool, NO_EFFECT] = False
    comp_comm_parallel: Annotated[bool, NO_EFFECT] = False
    comp_comm_parallel_degree: Annotated[int, NO_EFFECT] = 2
    save_token_distribution: Annotated[bool, NO_EFFECT] = False
    cur_layer: Annotated[int, NO_EFFECT] = 0


class TrainerConfig(Section):
    """The task, and the model by name."""

    type: Task = "text_generation"
    model_name: str = ""
    """A preset or a run of a package; gives the sizes that `model.model_config` leaves open."""


class ArchConfig(Section):
    """The network class, as the cards name it."""

    type: str = ""


class ModelSection(Section):
    """The network. `config` is `model_config` in YAML; `section.model_config` is the same.

    pydantic keeps that name for itself on classes, so the field cannot have it.
    """

    config: SerializeAsAny[ModelConfig] = Field(alias="model_config")
    arch: ArchConfig = ArchConfig()

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__("config" if name == "model_config" else name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("config" if name == "model_config" else name, value)


class InferConfig(Section):
    """Exported graphs. `predict --mindir` names their folder, and `--lite` the settings."""

    prefill_model_path: Annotated[str, NO_EFFECT] = ""
    increment_model_path: Annotated[str, NO_EFFECT] = ""
    infer_seq_length: Positive = 1024
    """Longest prompt + answer of an export; without it `seq_length` of the model."""
    model_type: Annotated[str, NO_EFFECT] = "mindir"
    ge_config_path: Annotated[str | None, NO_EFFECT] = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class RunConfig(Section):
    """Everything that decides what a run does."""

    run_mode: Literal["train", "finetune", "eval", "predict", "export"] | None = None
    """Kept for the record: the verb on the command line decides."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """`is_set("seed")` tells a seed that was given from this default."""
    output_dir: str = "./output"
    load_checkpoint: str = ""
    load_adapter: str = ""
    """An adapter to put on these weights: a folder (ours, or PEFT's) or a file."""
    src_strategy_path_or_dir: str = ""
    auto_trans_ckpt: bool = False
    only_save_strategy: bool = False
    resume_training: Annotated[bool | str, Described("true, false, or a checkpoint")] = False
    use_parallel: bool = False

    context: ContextConfig = ContextConfig()
    runner_config: RunnerConfig = RunnerConfig()
    runner_wrapper: RunnerWrapper = RunnerWrapper()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrSchedule = LrSchedule()
    callbacks: list[Callback] = Field(
        default_factory=lambda: list[Callback]([LossMonitor(), CheckpointMonitor()])
    )
    eval_callbacks: list[Callback] = Field(default_factory=list)
    do_eval: bool = False
    eval_step_interval: int = 100
    """Updates between evaluations while training; -1: by epochs."""
    eval_epoch_interval: int = -1
    """Epochs between evaluations while training; -1: by updates."""
    metric: Annotated[
        list[MetricConfig],
        BeforeValidator(_as_list),
        Described("a mapping with a type, or a list of such"),
    ] = Field(default_factory=lambda: [MetricConfig()])

    parallel: ParallelContextConfig = ParallelContextConfig()
    parallel_config: ParallelConfig = ParallelConfig()
    recompute_config: RecomputeConfig = RecomputeConfig()
    moe_config: MoeConfig = MoeConfig()

    trainer: TrainerConfig = TrainerConfig()
    model: ModelSection
    processor: Processor = Processor()
    train_dataset: DatasetConfig = DatasetConfig()
    train_dataset_task: DatasetTask = DatasetTask()
    eval_dataset: DatasetConfig = DatasetConfig()
    eval_dataset_task: DatasetTask = DatasetTask()

    input_data: str | list[str] | None = None
    """Prompts to answer."""
    predict_batch_size: Positive | None = None
    save_file: str = ""
    infer: InferConfig | None = None

    micro_batch_interleave_num: Annotated[Positive, NO_EFFECT] = 1
    remote_save_url: Annotated[str, NO_EFFECT] = ""
    auto_tune: Annotated[bool, NO_EFFECT] = False
    filepath_prefix: Annotated[str, NO_EFFECT] = "./autotune"
    autotune_per_step: Annotated[int, NO_EFFECT] = 10
    profile: Annotated[bool, NO_EFFECT] = False
    profile_start_step: Annotated[int, NO_EFFECT] = 1
    profile_stop_step: Annotated[int, NO_EFFECT] = 10
    init_start_profile: Annotated[bool, NO_EFFECT] = False
    profile_communication: Annotated[bool, NO_EFFECT] = False
    profile_memory: Annotated[bool, NO_EFFECT] = False
    layer_scale: Annotated[bool, NO_EFFECT] = False
    layer_decay: Annotated[float, NO_EFFECT] = 0.65
    lr_scale: Annotated[bool, NO_EFFECT] = False
    lr_scale_factor: Annotated[Positive, NO_EFFECT] = 256
    resume_by_last_timestamp_ckpt: Annotated[bool, NO_EFFECT] = False
    resume_gap_time: Annotated[int, NO_EFFECT] = 5
    resume_limit_time: Annotated[int, NO_EFFECT] = 7200

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def learning_rate(self) -> float:
        """The peak of the schedule."""
        return self.lr_schedule.learning_rate or self.optimizer.learning_rate or 5e-5

    @property
    def degrees(self) -> ParallelConfig:
        """`parallel_config`, with a sharded optimizer where `parallel` asks for it, too."""
        shard = self.parallel_config.optimizer_shard or self.parallel.enable_parallel_optimizer
        return self.parallel_config.model_copy(update={"optimizer_shard": shard}, deep=True)

    @property
    def loss_scale(self) -> ScaleSense:
        """The loss scale to use; a fixed 1 is none at all."""
        if self.runner_wrapper.scale_sense is not None:
            return self.runner_wrapper.scale_sense
        if self.model.config.compute_dtype == "float16":
            return ScaleSense()
        return ScaleSense(type="fixed", loss_scale_value=1.0)

    @property
    def loss_monitor(self) -> LossMonitor | None:
        """The first loss monitor of `callbacks`."""
        return next((item for item in self.callbacks if isinstance(item, LossMonitor)), None)

    @property
    def checkpoint(self) -> CheckpointMonitor | None:
        """The first checkpoint monitor of `callbacks`; without one nothing is saved on the way."""
        return next((item for item in self.callbacks if isinstance(item, CheckpointMonitor)), None)

    def origin(self, key: str) -> str:
        """Where the value of a dotted key comes from: "default", a file and line, or a flag."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            found = self._origins.get(".".join(parts[:length]))
            if found:
                return found
        return "default"

    def set_origins(self, origins: dict[str, str]) -> None:
        """Notes where values come from (the loader's business)."""
        self._origins = dict(origins)

    @property
    def origins(self) -> dict[str, str]:
        """Dotted key -> where its value comes from, for every key that is not a default."""
        return dict(self._origins)
