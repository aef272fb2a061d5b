"""A run, and this process among those of it: its place, and its part of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core import spec as registry
from lm_core.auto import AutoConfig, AutoModel, load_weights
from lm_core.checkpoint import hub, parts
from lm_core.checkpoint.ranks import TRANSFORMED
from lm_core.checkpoint.source import Recut
from lm_core.config.checks import check_world
from lm_core.config.load import build_parallel_config
from lm_core.config.model import LoraConfig
from lm_core.config.schema import RunConfig
from lm_core.config.task import with_head_of
from lm_core.errors import CheckpointError, ConfigError
from lm_core.log import get_logger
from lm_core.parallel.context import ParallelContext, init_context, take_place
from lm_core.parallel.machine import job_size
from lm_core.parallel.partition import Partition
from lm_core.peft import targets

if TYPE_CHECKING:
    from lm_core.nn.network import Network


def join(run: RunConfig, *, stages: bool = False) -> ParallelContext:
    """Joins the other processes of a run and finds this one's place among them.

    What is wrong with the degrees is found before anybody is waited for.

    Args:
        run: the run.
        stages: whether what is to be done can be done in pipeline stages.

    Raises:
        ConfigError: the degrees do not fit the model, the processes that run, or what is done.
    """
    degrees = run.model.config.parallel_config
    partition(run)
    if degrees.pipeline_stage > 1 and not stages:
        raise ConfigError(
            f"parallel_config.pipeline_stage: is {degrees.pipeline_stage}; must be 1 here, since "
            f"evaluation and generation know no pipeline; use model_parallel and data_parallel "
            f"(auto_trans_ckpt: True recuts checkpoints), and do_eval: False while training"
        )
    if run.use_parallel and job_size() > 1:
        check_world(run, job_size())
    rank, size = init_context(run.use_parallel, run.context)
    check_world(run, size)
    return take_place(degrees, size, rank)


def partition(run: RunConfig) -> Partition:
    """How a run cuts its model.

    Raises:
        ConfigError: the degrees do not fit the model.
    """
    config = run.model.config
    shapes = targets.shapes(hub.family_of(config), config)
    return Partition(config, config.parallel_config, shapes)


def write_strategy(run: RunConfig, context: ParallelContext) -> None:
    """Writes the strategy file of this rank below the run's output, where there are several."""
    if context.world_size > 1:
        parts.write_strategy(run.output_dir, partition(run), context.rank)
    elif run.only_save_strategy:
        get_logger(__name__).warning(
            "only_save_strategy: one process cuts nothing; no file is written"
        )


def load(run: RunConfig, name_or_path: str | Path, context: ParallelContext, **options: Any) -> Any:
    """`AutoModel.from_pretrained` of this process' part, with what the run says of recutting."""
    return AutoModel.from_pretrained(
        name_or_path, config=run.model.config, context=context, recut=_recut(run), **options
    )


def _recut(run: RunConfig) -> Recut:
    folder = Path(run.output_dir) / TRANSFORMED
    return Recut(run.auto_trans_ckpt, folder, run.src_strategy_path_or_dir)


def build_context(run: RunConfig) -> tuple[int, int]:
    """`init_context` as a run says, with its degrees; returns `(rank, number of processes)`.

    Raises:
        ConfigError: the degrees do not fit the model, the processes that run, or what is done.
    """
    build_parallel_config(run)
    context = join(run, stages=run.run_mode in ("train", "finetune"))
    return context.rank, context.world_size


def transform_and_load_checkpoint(
    run: RunConfig, model: Any, network: Network, dataset: Any = None, *, do_predict: bool = False
) -> None:
    """Puts the weights that a run names into a network: this process' part, recut where it must be.

    Args:
        run: says where they are (`load_checkpoint`, `load_adapter`) and what may be done with parts
            (`auto_trans_ckpt`, `src_strategy_path_or_dir`).
        model: a `mindspore.train.Model` around the network. It, `dataset` and `do_predict` are what
            a compiler needs that finds out how weights are cut. Here names and shapes say that, so
            none of the three is looked at.
        network: the model. An adapter that the weights do not hold stays as it is.
        dataset: see `model`.
        do_predict: see `model`.

    Raises:
        CheckpointError: no weights, damaged ones, or ones that do not fit: all names in one report.
    """
    if not run.load_checkpoint:
        raise CheckpointError(
            "load_checkpoint: is empty; must be the weights to load; set it in the run"
        )
    load_weights(network, run.load_checkpoint, recut=_recut(run))
    if run.load_adapter:
        from lm_core.peft.lora import get_pet_model

        get_pet_model(network, run.load_adapter)


def run_of(
    args: RunConfig | str | Path | Mapping[str, Any] | None,
    model: str | Path | Network | None,
    pet_method: str = "",
) -> RunConfig:
    """The run that a run file and a model, or one of the two, mean; see `Trainer`.

    Raises:
        ConfigError: every problem of the run.
    """
    if isinstance(args, RunConfig):
        run = args.model_copy(deep=True)
    else:
        run = _run_named(model, pet_method) if args is None else registry.read_run(args)
    if model is not None and not isinstance(model, str | Path):
        run.model.config = model.config.copy()
    elif model is not None and Path(model).exists():
        own = AutoConfig.from_pretrained(model)
        run.model.config = own if args is None else with_head_of(own, run.model.config)
        run.load_checkpoint = run.load_checkpoint or str(model)
    elif model is not None and args is not None:
        run.model.config = AutoConfig.from_pretrained(model)
    if pet_method and run.model.config.pet_config is None:
        run.model.config.pet_config = LoraConfig()
    return run


def _run_named(model: str | Path | Network | None, pet_method: str) -> RunConfig:
    """The run that a model's name stands for; defaults where it has none."""
    if model is None:
        raise ConfigError("model: is missing; must be a name, a directory or a model; give one")
    if isinstance(model, str | Path) and not Path(model).exists():
        spec = registry.find(str(model))
        named = [f"{model}_{pet_method}", str(model)] if pet_method else [str(model)]
        known = [name for name in named if name in spec.run_names()]
        return registry.read_run(
            known[0] if known else {"model": {"model_config": {"preset": str(model)}}}
        )
    config = AutoConfig.from_pretrained(model) if isinstance(model, str | Path) else model.config
    preset = next(iter(hub.family_of(config).presets))
    run = registry.read_run({"model": {"model_config": {"preset": preset}}})
    run.model.config = config
    return run
