"""The task of a run: what is given beside a run file, and what the run file says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from lm_core.config.model import ModelConfig, Task
from lm_core.config.section import suggest
from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig

_NAMES = next(mark for mark in get_args(Task) if hasattr(mark, "table"))
TASKS = tuple(_NAMES.names)
HEAD_FIELDS = ("task", "num_labels", "label_names")


def check_named(task: str | None, pet_method: str) -> None:
    """Raises ConfigError where a task or a method of training is none that is known."""
    problems = []
    if task is not None and task not in TASKS:
        problems.append(f"task: {task!r} is not trained; {suggest(task, TASKS)}")
    if pet_method not in ("", "lora"):
        problems.append(f"pet_method: {pet_method!r} is unknown; must be 'lora', or left out")
    if problems:
        raise ConfigError(*problems)


def set_task(run: RunConfig, task: str | None, fixed: bool) -> None:
    """Makes a run one for `task`.

    Args:
        run: is changed: the task of its trainer and of its model.
        task: one of TASKS; None: the model's.
        fixed: the run was given whole, so that another task contradicts it.

    Raises:
        ConfigError: an unknown task, one that the model has no network for, or a contradiction.
    """
    config = run.model.config
    if task is not None and task != config.task:
        if fixed:
            raise ConfigError(
                f"task: {task} is given for a run of {config.task}; must be the same; leave it out "
                f"or give another run"
            )
        run.model.config = config.copy(task=task)
    run.trainer.type = run.model.config.task


def with_head_of(config: ModelConfig, run: ModelConfig) -> ModelConfig:
    """The architecture of weights with the head that a run wants, where it is of another task."""
    if config.task == run.task:
        return config
    changes: dict[str, Any] = {name: getattr(run, name) for name in HEAD_FIELDS}
    return config.copy(changes)
