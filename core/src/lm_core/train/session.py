"""From a resolved run, a model and records to a loop that is ready to go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.checkpoint import atomic, hub, io, saved
from lm_core.config.load import dump_run
from lm_core.config.of_checkpoint import RUN
from lm_core.config.training import CheckpointMonitor as CheckpointSettings
from lm_core.config.training import EvalCallback, SummaryMonitor
from lm_core.data.pipeline import BatchIterator
from lm_core.data.records import Records
from lm_core.errors import ConfigError, DataError, TokenizerError
from lm_core.log import get_logger
from lm_core.parallel.partition import WHOLE, state_dim
from lm_core.peft import files as adapters
from lm_core.train import answers, nonfinite
from lm_core.train import optimizer as optimizers
from lm_core.train import schedule as schedules
from lm_core.train.callbacks import (
    Callback,
    CheckpointMonitor,
    LossMonitor,
    MetricsFile,
    TensorBoard,
)
from lm_core.train.loop import Plan, TrainLoop
from lm_core.train.loss_scale import LossScale
from lm_core.train.objective import objective, scoring
from lm_core.train.pipeline import PipelineStep
from lm_core.train.sharded import ShardedOptimizer
from lm_core.train.state import TrainState, read_counters
from lm_core.train.step import TrainStep, trained_parameters

if TYPE_CHECKING:
    from lm_core.config.data import DatasetConfig
    from lm_core.config.model import ModelConfig
    from lm_core.config.schema import RunConfig
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.tokenizer.base import Tokenizer
    from lm_core.train.evaluation import Evaluator
    from lm_core.train.optimizer import Optimizer
    from lm_core.train.schedule import Schedule

log = get_logger(__name__)


def open_records(run: RunConfig, which: str, tokenizer: Callable[[], Tokenizer]) -> Records:
    """The records that `train_dataset` or `eval_dataset` names, for the task of the run's model.

    Args:
        run: the run.
        which: the section.
        tokenizer: gives what encodes texts, where the section names such.

    Raises:
        ConfigError: it names none.
        DataError: they cannot be read, or do not fit the model.
    """
    section: DatasetConfig = getattr(run, which)
    loader = section.data_loader
    if loader.type not in ("MindDataset", answers.LOADER):
        raise ConfigError(
            f"{which}.data_loader.type: {loader.type} reads raw text, which this verb does not; "
            f"turn it into records with `preprocess` and use MindDataset"
        )
    if not loader.dataset_dir:
        raise ConfigError(
            f"{which}.data_loader.dataset_dir: is missing; must be a record file or a folder of "
            f"such; add --{which}_dir D"
        )
    task = objective(run.model.config) if which == "train_dataset" else scoring(run)
    records: Records
    if loader.type == answers.LOADER:
        records = answers.open_answers(run, which, tokenizer)
    else:
        records = task.open(section)
    if loader.num_samples is not None:
        records = records.first(loader.num_samples)
    task.check(records, training=which == "train_dataset")
    return records


def checkpoint_folder(run: RunConfig, rank: int = 0) -> Path:
    """Where this rank's checkpoints go."""
    settings = run.checkpoint
    if settings is not None and settings.directory:
        return Path(settings.directory) / f"rank_{rank}"
    return Path(run.output_dir) / "checkpoint" / f"rank_{rank}"


def set_aside(run: RunConfig, files: MutableMapping[str, Path], rank: int = 0) -> None:
    """Makes room for a new run: moves checkpoints of an earlier one, which nothing may overwrite.

    Args:
        run: the new run.
        files: those that lie in what is moved are pointed to their new place.
        rank: whose checkpoints.
    """
    folder = checkpoint_folder(run, rank)
    if not saved.checkpoints(folder, saved.STATE):
        return
    number = 1
    while (target := folder.parent / f".earlier-{number}" / folder.name).exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = {
        n: p.resolve().relative_to(folder.resolve())
        for n, p in files.items()
        if p.resolve().is_relative_to(folder.resolve())
    }
    folder.rename(target)
    files.update({name: target / path for name, path in inside.items()})
    log.warning("%s held checkpoints of an earlier run; they are in %s now", folder, target)


def check_vocabulary(config: ModelConfig, files: Mapping[str, Path], named: bool) -> None:
    """Compares the tokenizer that checkpoints will hold with the model.

    Args:
        config: the model.
        files: the tokenizer's, by name; none: there is nothing to compare.
        named: the user named it, so it must fit. One that lay beside the weights gives a warning,
            since ids of tokens that were added to it may never occur, and records are checked.

    Raises:
        ConfigError: it has ids that the model does not have.
        TokenizerError: it cannot be read.
    """
    folder = next((path.parent for path in files.values()), None)
    if folder is None:
        return
    try:
        ids = hub.family_of(config).tokenizer(folder).vocab_size
    except TokenizerError:
        if named:
            raise
        return
    if ids > config.vocab_size:
        problem = (
            f"tokenizer: {folder} has ids up to {ids - 1}; must be below the model's vocab_size "
            f"{config.vocab_size}; give the tokenizer of this model (--tokenizer DIR), or set "
            f"model.model_config.vocab_size={ids}"
        )
        if named:
            raise ConfigError(problem)
        log.warning("%s", problem)


def log_folder(run: RunConfig, rank: int = 0) -> Path:
    """Where the history of the run is written, and all of its settings."""
    return Path(run.output_dir) / "log" / f"rank_{rank}"


def write_run(run: RunConfig, rank: int = 0) -> None:
    """Stores the settings that this run has, defaults included."""
    with atomic.new_file(log_folder(run, rank) / RUN) as path:
        path.write_text(dump_run(run), encoding="utf-8")


def build(
    run: RunConfig,
    model: Network,
    train: Records,
    evaluation: Records | None = None,
    *,
    resume: Path | None = None,
    files: Mapping[str, Path] | None = None,
) -> TrainLoop:
    """A loop for a run.

    Args:
        run: all settings.
        model: with the weights to start from; those of `resume` replace them.
        train: the training records.
        evaluation: held-out records; None: no evaluation on the way.
        resume: a checkpoint that `state.find` gave.
        files: to be kept in every checkpoint (the tokenizer's).

    Raises:
        ConfigError, DataError, CheckpointError: something does not fit.
    """
    task = objective(model.config)
    kinds = {metric.type for metric in run.metric} if evaluation is not None else set()
    if "em_f1" in kinds:
        raise ConfigError(
            "do_eval: is True with EmF1Metric, whose records hold no text to measure a loss on; "
            "must be False; `evaluate` gives the scores of a checkpoint"
        )
    if "adgen" in kinds:
        log.info("do_eval: while training the loss is measured; `evaluate` gives ADGENMetric")
    if run.recompute_config.recompute:
        model.recompute_layers()
    data = _batches(run, train, model.context)
    total = _total_steps(run, data.steps_per_epoch)
    schedule = schedules.from_config(
        run.lr_schedule, run.learning_rate, total, data.steps_per_epoch
    )
    context = model.context
    state = TrainState(
        model=model,
        step=training_step(run, model),
        loss_scale=LossScale.from_config(run.loss_scale),
        data=data,
        run_text=dump_run(run),
        metrics=log_folder(run, context.rank) / saved.METRICS,
        files=files or {},
        base=_base(run, model),
    )
    if resume is not None:
        _resume(state, resume, schedule)
    return TrainLoop(
        state,
        schedule,
        _plan(run, state, total, task.unit, evaluates=evaluation is not None),
        task.prepare,
        _callbacks(run, resume, context.rank),
        None if evaluation is None else evaluator(run, model, evaluation),
    )


def _plan(run: RunConfig, state: TrainState, total: int, unit: str, *, evaluates: bool) -> Plan:
    """How far to train, and what happens on the way."""
    steps, epochs = _evaluation_intervals(run) if evaluates else (None, None)
    return Plan(
        total_steps=total,
        rows=state.data.batch_size // state.data.dp_size,
        eval_steps=steps,
        eval_epochs=epochs,
        skip_nonfinite=run.runner_wrapper.nan_policy == "skip",
        nonfinite=log_folder(run, state.model.context.rank) / nonfinite.FILE,
        unit=unit,
    )


def metric_name(run: RunConfig) -> str:
    """What the scores of the run are called."""
    return scoring(run).metric


def evaluator(run: RunConfig, model: Network, records: Records) -> Evaluator:
    """Measures what the run is scored by on held-out records."""
    return scoring(run).evaluator(model, records, run.runner_config.batch_size)


def _batches(run: RunConfig, records: Records, context: ParallelContext) -> BatchIterator:
    """Batches of whole steps: all micro-batches of all ranks."""
    section, runner = run.train_dataset, run.runner_config
    ranks = context.data_parallel
    parts = runner.gradient_accumulation_steps * context.micro_batch_num * ranks
    whole_batches = section.drop_remainder is not False
    if parts > 1 and whole_batches and runner.batch_size * parts > len(records):
        in_flight = context.micro_batch_num
        stages = f" x micro_batch_num {in_flight}" if in_flight > 1 else ""
        raise DataError(
            f"runner_config.batch_size: {runner.batch_size} x gradient_accumulation_steps "
            f"{runner.gradient_accumulation_steps}{stages} x data_parallel {ranks} is more than "
            f"the {len(records)} records of {records.path}; lower one of these, use more data or "
            f"train_dataset.drop_remainder=False"
        )
    return BatchIterator(
        records,
        runner.batch_size * parts,
        seed=run.seed if section.seed is None else section.seed,
        shuffle=section.data_loader.shuffle,
        drop_remainder=whole_batches,
        dp_rank=context.dp_rank,
        dp_size=ranks,
        vocab_size=run.model.config.vocab_size,
        check=objective(run.model.config).batch_check(records),
    )


def _base(run: RunConfig, model: Network) -> tuple[str, str] | None:
    """Where the weights under an adapter that is saved alone came from, and their checksum."""
    if run.checkpoint is None or not run.checkpoint.save_trainable_params:
        return None
    if model.config.pet_config is None:
        return None
    if model.context.cuts_weights:
        log.warning("save_trainable_params: has no effect where a rank holds a part of the model")
        return None
    named = model.config.checkpoint_name_or_path
    if not named:
        log.warning("the weights under the adapter are in no file; checkpoints hold them, too")
        return None
    weights = io.Parameters(model.named_parameters())
    base_sum = adapters.checksum(weights, model.config.param_init_type)
    return str(Path(named).resolve()) if Path(named).exists() else named, base_sum


def _total_steps(run: RunConfig, steps_per_epoch: int) -> int:
    runner = run.runner_config
    whole = runner.epochs * steps_per_epoch
    return whole if runner.max_steps is None else min(whole, runner.max_steps)


def training_step(run: RunConfig, model: Network) -> TrainStep:
    """The compiled step of a run, for this rank's part of a model."""
    wrapper, context = run.runner_wrapper, model.context
    kind = PipelineStep if context.pipeline_stage > 1 else TrainStep
    return kind(
        model,
        _optimizer(run, model),
        max_grad_norm=wrapper.max_grad_norm if wrapper.use_clip_grad else None,
        accumulation=run.runner_config.gradient_accumulation_steps * context.micro_batch_num,
        seed=run.seed,
        one_target=model.config.is_classifier,
    )


def _optimizer(run: RunConfig, model: Network) -> Optimizer:
    """The update rule; its state is shared by data-parallel ranks where the run says so."""
    weights, cuts = trained_parameters(model), model.cuts()
    rule = partial(optimizers.from_config, run.optimizer)
    dims = [
        state_dim(weight.shape, cuts.get(weight.name, WHOLE).dim, model.context)
        for weight in weights
    ]
    if all(dim is None for dim in dims):
        return rule(weights)
    return ShardedOptimizer(weights, rule, dims, model.context)


def _resume(state: TrainState, checkpoint: Path, schedule: Schedule) -> None:
    state.load(checkpoint)
    log.info(
        "resuming %s: step %d, %d of %d batches of epoch %d done",
        checkpoint, state.step.steps, state.data.step, state.data.steps_per_epoch,
        state.data.epoch + 1,
    )  # fmt: skip
    if state.step.steps < schedule.total_steps:
        return
    done = read_counters(checkpoint)["step"]
    log.info("the run is complete at step %d; train longer with --epochs or --max_steps", done)


def _evaluation_intervals(run: RunConfig) -> tuple[int | None, int | None]:
    """Steps and epochs between evaluations; None for neither."""
    steps, epochs = run.eval_step_interval, run.eval_epoch_interval
    callback = next((item for item in run.callbacks if isinstance(item, EvalCallback)), None)
    if callback is not None:
        steps, epochs = callback.step_interval, callback.epoch_interval
    return (steps if steps > 0 else None, epochs if epochs > 0 else None)


def _callbacks(run: RunConfig, resume: Path | None, rank: int) -> list[Callback]:
    found: list[Callback] = []
    if run.loss_monitor is not None:
        found.append(LossMonitor(run.loss_monitor.per_print_times))
    found.append(MetricsFile(log_folder(run, rank) / saved.METRICS))
    for item in run.callbacks:
        if isinstance(item, SummaryMonitor):
            folder = item.summary_dir or Path(run.output_dir) / "summary" / f"rank_{rank}"
            found.append(TensorBoard(Path(folder), item.collect_freq))
    settings = run.checkpoint or CheckpointSettings(save_checkpoint_steps=0)
    found.append(
        CheckpointMonitor(
            checkpoint_folder(run, rank),
            settings.prefix,
            every_steps=settings.save_checkpoint_steps,
            every_seconds=settings.save_checkpoint_seconds,
            keep=settings.keep_checkpoint_max,
            last=resume,
            background=settings.async_save,
        )
    )
    return found
