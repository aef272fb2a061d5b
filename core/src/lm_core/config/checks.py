"""What no single key of a run shows: names that contradict each other, processes that miscount."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from lm_core.config.explain import KeyPath, spell
from lm_core.config.schema import RunConfig
from lm_core.config.section import NoEffect, suggest
from lm_core.errors import ConfigError
from lm_core.log import notice_once


def problems(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """Every contradiction, as (path of the key, what; what to change).

    Whether the degrees fit the model is asked where they are used: lm_core.parallel.partition.
    """
    for line in run.lr_schedule.problems():
        key, _, text = line.partition(": ")
        yield ("lr_schedule", key), text
    yield from _intervals(run)
    if run.parallel_config.expert_parallel > 1:
        text = f"is {run.parallel_config.expert_parallel}; must be 1: there are no experts"
        yield ("parallel_config", "expert_parallel"), text
    yield from _network(run)


def _intervals(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    for key in ("eval_step_interval", "eval_epoch_interval"):
        value = getattr(run, key)
        if value == 0 or value < -1:
            yield (key,), f"is {value}; must be -1 (off) or more than 0"


def _network(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    networks, name = run.model.config.architectures, run.model.arch.type
    if name and name not in networks:
        yield (
            ("model", "arch", "type"),
            f"{name!r} is no network of this model; {suggest(name, networks)}",
        )
    elif name and run.trainer.is_set("type") and networks[name] != run.trainer.type:
        text = f"{run.trainer.type} does not fit the network {name}; must be {networks[name]}"
        yield ("trainer", "type"), text
    elif run.model.config.task != run.trainer.type:
        text = f"{run.model.config.task} does not fit trainer.type {run.trainer.type}; remove one"
        yield ("model", "model_config", "task"), text
    for line in run.model.config.problems():  # what follows from the task is known only now
        key, _, text = line.partition(": ")
        if key in ("task", "num_labels"):
            yield ("model", "model_config", key), text


def check_world(run: RunConfig, world_size: int) -> None:
    """Compares the degrees with the processes that run.

    Raises:
        ConfigError: their product is another number.
    """
    degrees = run.model.config.parallel_config
    if degrees.world_size == world_size:
        return
    product = " x ".join(
        f"{key} {getattr(degrees, key)}"
        for key in ("data_parallel", "model_parallel", "pipeline_stage")
    )
    what = "process runs" if world_size == 1 else "processes run"
    if not run.use_parallel:
        raise ConfigError(
            f"use_parallel: is false but {world_size} {what}; "
            f"set use_parallel: True or start one process"
        )
    raise ConfigError(
        f"parallel_config: {product} = {degrees.world_size} processes, but {world_size} {what}; "
        f"change the degrees, start {degrees.world_size} processes, or give --use_parallel False"
    )


PLANNED = ("context.max_device_memory",)
"""Keys that `lm plan` reads, and nothing that runs."""


def no_effect(run: RunConfig) -> list[str]:
    """Dotted keys that were set to something, and that nothing here has a use for."""
    return sorted(
        [*_without_effect(run, ()), *_without_effect(run.model.config, ("model", "model_config"))]
    )


def _without_effect(section: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        here = (*path, field.alias or name)
        if any(isinstance(mark, NoEffect) for mark in field.metadata):
            if value != field.get_default(call_default_factory=True):
                yield spell(here)
        elif isinstance(value, BaseModel) and here != ("model", "model_config"):
            yield from _without_effect(value, here)


def report_no_effect(run: RunConfig, *, started: bool = True) -> None:
    """Says once which keys do nothing here; `lm plan`, which starts nothing, reads some more."""
    keys = [key for key in no_effect(run) if started or key not in PLANNED]
    if keys:
        text = ", ".join(keys)
        notice_once(f"no effect: {text}", f"accepted, but without effect: {text}")
