"""Sections of a run about training: optimizer, schedule, loss scale, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lm_core.config.section import (
    NO_EFFECT,
    Described,
    Factor,
    NonNegative,
    OneOf,
    Positive,
    Probability,
    Section,
)

Decay = Annotated[float, Field(ge=0.0)]


class RunnerConfig(Section):
    """How long to train and with how many samples at once."""

    epochs: Positive = 1
    batch_size: Positive = 1
    """Samples per data-parallel rank and micro-batch."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches per update; the update sees the mean over all their tokens."""
    max_steps: Positive | None = None
    """Stop after this many updates, also in the middle of an epoch."""
    sink_mode: Annotated[bool, NO_EFFECT] = False
    sink_size: Annotated[int, NO_EFFECT] = -1


class OptimizerConfig(Section):
    """The update rule; state is kept in float32 whatever the weights are."""

    type: Annotated[
        str,
        OneOf(
            {
                "adamw": (
                    "AdamW",
                    "FP32StateAdamWeightDecay",
                    "FusedAdamWeightDecay",
                    "FusedCastAdamWeightDecay",
                    "AdamWeightDecay",
                    "fused_adamw",
                    "fp32_adamw",
                ),
                "sgd": ("SGD",),
            }
        ),
    ] = "adamw"
    learning_rate: Factor | None = None
    """For runs without `lr_schedule.learning_rate`."""
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eps: Factor = 1e-8
    weight_decay: Decay = 0.0
    bias_correction: bool = True
    """AdamW: False is MindSpore's own rule, which `*AdamWeightDecay` had in MindFormers."""
    momentum: Probability = 0.0
    nesterov: bool = False


class LrSchedule(Section):
    """The learning rate as a function of the update number."""

    type: Annotated[
        str,
        OneOf(
            {
                "constant": ("ConstantWarmUpLR", "constant_with_warmup"),
                "linear": ("LinearWithWarmUpLR",),
                "cosine": ("CosineWithWarmUpLR",),
                "cosine_with_restarts": ("CosineWithRestartsAndWarmUpLR",),
                "polynomial": ("PolynomialWithWarmUpLR",),
            }
        ),
    ] = "constant"
    learning_rate: Factor | None = None
    lr_end: Decay = 0.0
    warmup_steps: NonNegative = 0
    warmup_ratio: Probability | None = None
    """Share of all updates; in place of `warmup_steps`."""
    warmup_epochs: Decay | None = None
    warmup_lr_init: Decay = 0.0
    total_steps: Annotated[int, Field(ge=-1)] = -1
    """-1: all updates of the run."""
    decay_steps: Positive | None = None
    power: Factor = 1.0
    num_cycles: Factor | None = None
    """Cosine: 0.5 when not given; cosine with restarts: 1."""

    def problems(self) -> list[str]:
        """What does not fit together, as `key: what; what to change` lines."""
        found = []
        given = [
            key for key in ("warmup_steps", "warmup_ratio", "warmup_epochs") if getattr(self, key)
        ]
        if len(given) > 1:
            found.append(f"{given[1]}: is given beside {given[0]}; keep one of them (the other: 0)")
        if 0 <= self.total_steps <= self.warmup_steps and self.warmup_steps:
            found.append(
                f"warmup_steps: {self.warmup_steps} leaves no step of total_steps "
                f"{self.total_steps}; must be less than {self.total_steps}"
            )
        if self.total_steps == 0:
            found.append("total_steps: is 0; must be -1 (all updates of the run) or more than 0")
        if self.learning_rate is not None and self.lr_end > self.learning_rate:
            found.append(
                f"lr_end: {self.lr_end:g} is above learning_rate {self.learning_rate:g}; "
                f"must be at most that"
            )
        return found


class ScaleSense(Section):
    """Loss scale: keeps small float16 gradients from vanishing."""

    type: Annotated[
        str,
        OneOf(
            {
                "dynamic": (
                    "DynamicLossScaleUpdateCell",
                    "Dynamic",
                    "AdaptiveLossScaleUpdateCell",
                    "Adaptive",
                ),
                "fixed": ("FixedLossScaleUpdateCell", "Fixed"),
            }
        ),
    ] = "dynamic"
    loss_scale_value: Annotated[float, Field(ge=1.0)] = 65536.0
    scale_factor: Annotated[float, Field(gt=1.0)] = 2.0
    scale_window: Positive = 1000
    max_scale_window: Annotated[Positive, NO_EFFECT] = 1000
    min_scale_window: Annotated[Positive, NO_EFFECT] = 20


def _number_is_fixed(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"type": "fixed", "loss_scale_value": float(value)}
    if isinstance(value, str):
        return {"type": value}
    return value


class RunnerWrapper(Section):
    """What is done to the gradients between loss and optimizer."""

    type: Annotated[
        str,
        OneOf(
            {
                "train_one_step": (
                    "MFTrainOneStepCell",
                    "MFPipelineWithLossScaleCell",
                    "TrainOneStepCell",
                    "TrainOneStepWithLossScaleCell",
                )
            }
        ),
    ] = "train_one_step"
    scale_sense: Annotated[
        ScaleSense | None,
        BeforeValidator(_number_is_fixed),
        Described("a number, dynamic, fixed, or a mapping with type and loss_scale_value"),
    ] = None
    """None: dynamic where the model computes in float16, no scaling elsewhere."""
    use_clip_grad: bool = True
    max_grad_norm: Factor = 1.0
    """Gradients are scaled down to this global norm."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: ends the run, or leaves the step out, up to
    10 in a row. The weights keep their values, and nonfinite.jsonl beside the log names the records
    of the step. A gradient that overflows under a dynamic loss scale is no such case."""


class LossMonitor(Section):
    """Prints loss, learning rate, gradient norm, speed and time left."""

    type: Annotated[str, OneOf({"loss_monitor": ("MFLossMonitor", "LossMonitor")})] = "loss_monitor"
    per_print_times: Positive = 1
    """Updates between two lines."""
    learning_rate: Annotated[float | None, NO_EFFECT] = None
    micro_batch_num: Annotated[int | None, NO_EFFECT] = None
    micro_batch_interleave_num: Annotated[int | None, NO_EFFECT] = None
    origin_epochs: Annotated[int | None, NO_EFFECT] = None
    dataset_size: Annotated[int | None, NO_EFFECT] = None
    initial_epoch: Annotated[int | None, NO_EFFECT] = None
    initial_step: Annotated[int | None, NO_EFFECT] = None
    global_batch_size: Annotated[int | None, NO_EFFECT] = None
    gradient_accumulation_steps: Annotated[int | None, NO_EFFECT] = None


class CheckpointMonitor(Section):
    """Saves checkpoints from which training goes on."""

    type: Annotated[str, OneOf({"checkpoint": ("CheckpointMonitor", "CheckpointMointor")})] = (
        "checkpoint"
    )
    prefix: str = "CKP"
    directory: str | None = None
    save_checkpoint_steps: NonNegative = 500
    """Updates between two checkpoints; 0: only at the end."""
    save_checkpoint_seconds: Annotated[float, Field(ge=0)] = 0.0
    keep_checkpoint_max: Positive = 5
    keep_checkpoint_per_n_minutes: Annotated[int, NO_EFFECT] = 0
    integrated_save: Annotated[bool, NO_EFFECT] = True
    async_save: bool = False
    """Copy the state to host memory and let a thread write it while training goes on."""
    save_network_params: bool = True
    save_trainable_params: bool = False
    exception_save: Annotated[bool, NO_EFFECT] = False
    append_info: Annotated[list[Any] | None, NO_EFFECT] = None
    enc_key: Annotated[str | None, NO_EFFECT] = None
    enc_mode: Annotated[str, NO_EFFECT] = "AES-GCM"


class ObsMonitor(Section):
    """Uploads to a cloud store; accepted so that run files of the cards load."""

    type: Annotated[str, OneOf({"obs": ("ObsMonitor",)})] = "obs"
    step_upload_frequence: int = 100
    epoch_upload_frequence: int = -1
    keep_last: bool = True


class SummaryMonitor(Section):
    """Writes TensorBoard files."""

    type: Annotated[str, OneOf({"summary": ("SummaryMonitor", "TensorBoard")})] = "summary"
    summary_dir: str | None = None
    collect_freq: Positive = 10


class ProfileMonitor(Section):
    """MindSpore's profiler over a range of steps."""

    type: Annotated[str, OneOf({"profile": ("ProfileMonitor",)})] = "profile"
    start_step: Positive = 1
    stop_step: Positive = 10
    output_path: str | None = None


class EvalCallback(Section):
    """Evaluation during training; `do_eval` with its intervals means the same."""

    type: Annotated[str, OneOf({"eval": ("EvalCallBack", "EvalCallback")})] = "eval"
    step_interval: int = 100
    epoch_interval: int = -1


_KINDS = {
    section.model_fields["type"].default: section
    for section in (
        LossMonitor,
        CheckpointMonitor,
        ObsMonitor,
        SummaryMonitor,
        ProfileMonitor,
        EvalCallback,
    )
}
CALLBACK_NAMES = {
    alias: name
    for section in _KINDS.values()
    for mark in section.model_fields["type"].metadata
    for alias, name in mark.table.items()
    if alias != name
}
"""The cards' names, one of them misspelt there, and ours."""


def _kind(value: Any) -> str | None:
    name = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    name = CALLBACK_NAMES.get(name, name) if isinstance(name, str) else None
    return name if name in _KINDS else None


Callback = Annotated[
    Annotated[LossMonitor, Tag("loss_monitor")]
    | Annotated[CheckpointMonitor, Tag("checkpoint")]
    | Annotated[ObsMonitor, Tag("obs")]
    | Annotated[SummaryMonitor, Tag("summary")]
    | Annotated[ProfileMonitor, Tag("profile")]
    | Annotated[EvalCallback, Tag("eval")],
    Discriminator(_kind),
    Described(f"a mapping whose type is one of {', '.join(CALLBACK_NAMES)}"),
]
