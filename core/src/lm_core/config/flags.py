"""Flags of a run, and how flags, `key.sub=value` and `--key.sub value` become one run."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.layers import Layers, Override
    from lm_core.config.load import ModelFamily
    from lm_core.config.schema import RunConfig

FLAGS = (
    (
        "load_checkpoint",
        "load_checkpoint",
        "X",
        "weights: a directory, a file, a hub id (owner/name) or a preset",
    ),
    ("load_adapter", "load_adapter", "D", "folder of a LoRA adapter to put on these weights"),
    (
        "train_dataset_dir",
        "train_dataset.data_loader.dataset_dir",
        "D",
        "training records: a file, or a folder of such",
    ),
    (
        "eval_dataset_dir",
        "eval_dataset.data_loader.dataset_dir",
        "D",
        "evaluation records: a file, or a folder of such",
    ),
    ("epochs", "runner_config.epochs", "N", "passes over the training records"),
    (
        "batch_size",
        "runner_config.batch_size",
        "N",
        "records of a batch, in each data-parallel rank",
    ),
    ("output_dir", "output_dir", "D", "folder that checkpoints, logs and metrics go to"),
    (
        "resume_training",
        "resume_training",
        "BOOL_OR_DIR",
        "go on from the newest checkpoint in --output_dir (True), or from this one",
    ),
    (
        "auto_trans_ckpt",
        "auto_trans_ckpt",
        "BOOL",
        "cut a checkpoint of other parallel degrees anew, to those of this run",
    ),
    (
        "use_parallel",
        "use_parallel",
        "BOOL",
        "this process is one of several, as launch.sh starts them",
    ),
    ("device_id", "context.device_id", "N", "number of the device on this machine"),
    ("seed", "seed", "N", "random seed; the same one gives the same result"),
)
MORE_FLAGS = (
    ("max_steps", "runner_config.max_steps", "N", "stop after so many updates of the weights"),
    (
        "gradient_accumulation_steps",
        "runner_config.gradient_accumulation_steps",
        "N",
        "batches added up for each update",
    ),
    (
        "learning_rate",
        "lr_schedule.learning_rate",
        "LR",
        "highest learning rate, that after the warm-up",
    ),
    ("do_eval", "do_eval", "BOOL", "measure on the evaluation records while training"),
    (
        "num_samples",
        "train_dataset.data_loader.num_samples",
        "N",
        "use the first N records only, of those that the verb reads",
    ),
    (
        "device_target",
        "context.device_target",
        "NAME",
        "CPU or Ascend (default: Ascend where there is one)",
    ),
    ("mode", "context.mode", "N", "0: compiled graphs, 1: one operation after the other, slow"),
    ("run_mode", "run_mode", "NAME", "accepted without effect: the verb decides"),
    (
        "src_strategy_path_or_dir",
        "src_strategy_path_or_dir",
        "D",
        "strategy file or folder that says how a checkpoint in parts is cut",
    ),
    (
        "only_save_strategy",
        "only_save_strategy",
        "BOOL",
        "write the strategy files of this run and stop",
    ),
    ("sink_mode", "runner_config.sink_mode", "BOOL", "accepted without effect"),
    ("profile", "profile", "BOOL", "accepted without effect"),
    ("remote_save_url", "remote_save_url", "URL", "accepted without effect"),
)
"""(flag, key, what it takes, help)."""

EPILOG = """\
Any key of the run file can be set at the end of the line, as key.sub=value or --key.sub value:
  lr_schedule.learning_rate=1e-4 model.model_config.seq_length=512
  callbacks.CheckpointMonitor.keep_checkpoint_max=3
Order of precedence: defaults < base file < run file < flags < key=value."""


def str2bool(text: str) -> bool:
    """A truth value: true, 1, yes, on or their opposites, in any case."""
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "y", "on"):
        return True
    if lowered in ("false", "0", "no", "n", "off"):
        return False
    raise ArgumentTypeError(f"{text!r} is neither true nor false")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def add_run_arguments(parser: ArgumentParser) -> None:
    """Adds the flags that every verb with a run has; a second call does nothing."""
    if parser.get_default("takes_run"):
        return
    parser.set_defaults(takes_run=True)
    run = parser.add_argument_group("run", "Where a flag is left out, the run file decides.")
    run.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help="name of a packaged run, or a YAML file; not needed if --load_checkpoint is a folder "
        "that says what it holds",
    )
    run.add_argument(
        "--predict_data",
        metavar="TEXT",
        nargs="+",
        help="prompts, or a text file with one in each line",
    )
    for flag, _, metavar, text in FLAGS:
        also = ["--train_data"] if flag == "train_dataset_dir" else []
        run.add_argument(f"--{flag}", *also, metavar=metavar, help=text)
    more = parser.add_argument_group("more flags of run files")
    for flag, key, metavar, text in MORE_FLAGS:
        more.add_argument(f"--{flag}", metavar=metavar, help=f"{text} ({key})")
    more.add_argument(
        "--options", metavar="KEY=VALUE", nargs="+", help="the same as KEY=VALUE at the end"
    )
    parser.epilog = EPILOG


def split_overrides(argv: Sequence[str], flags: Iterable[str]) -> tuple[list[str], list[str]]:
    """Takes `--key.sub value`, `--key.sub=value` and `--toplevelkey value` out of a command line.

    Args:
        argv: the words after the verb.
        flags: what the parser knows ("--epochs").

    Returns:
        The other words, and "key.sub=value" texts.

    Raises:
        ConfigError: a key has no value.
    """
    known = set(flags)
    words, found = list(argv), []
    rest: list[str] = []
    while words:
        word = words.pop(0)
        name, separator, _ = word.partition("=")
        if not re.match(r"--[A-Za-z_]", name) or name in known or not _is_key(name[2:]):
            rest.append(word)
        elif separator:
            found.append(word[2:])
        elif words and not words[0].startswith("--"):
            found.append(f"{name[2:]}={words.pop(0)}")
        else:
            raise ConfigError(
                f"command line: {name}: has no value; write {name} VALUE or {name[2:]}=VALUE"
            )
    return rest, found


def _is_key(name: str) -> bool:
    if "." in name:
        return True
    from lm_core.config.schema import RunConfig

    return name in RunConfig.model_fields


def resolve_run(
    spec: ModelFamily,
    args: Namespace,
    overrides: Sequence[str] = (),
    *,
    started: bool = True,
    kept: Sequence[str] = (),
) -> RunConfig:
    """The run that a command line asks for.

    Args:
        spec: the model package.
        args: parsed flags of `add_run_arguments`.
        overrides: "key.sub=value" texts.
        started: False for a run that is looked at, with any number of processes.
        kept: sections that are those of the run that made the checkpoint, where no --config says
            otherwise.

    Raises:
        ConfigError: every problem found, one line each.
    """
    from lm_core.config import checks
    from lm_core.config.load import resolve

    run = resolve(_layers(spec, args, overrides, kept), spec, started=started)
    if started:
        checks.check_world(run, world_size())
    return run


def _looks_like_a_path(name: str) -> bool:
    """Nothing is there, and it is no hub id (owner/name)."""
    return not Path(name).exists() and (name.count("/") != 1 or name[0] in "./~")


def _layers(
    spec: ModelFamily, args: Namespace, overrides: Sequence[str], kept: Sequence[str]
) -> Layers:
    from lm_core.config import of_checkpoint
    from lm_core.config.layers import Layers, read_layers

    prompts, texts = _prompts(getattr(args, "predict_data", None))
    changes = _changes(args, prompts, [*texts, *overrides])
    if args.config:
        return read_layers(_source(spec, args.config), changes, [spec.configs])
    # An export says what it holds as a checkpoint does.
    source = getattr(args, "mindir", None) or args.load_checkpoint
    layers = of_checkpoint.layers(spec, source, kept) if source else None
    if layers is None:
        given = f"; {args.load_checkpoint} holds no config.json" if args.load_checkpoint else ""
        if args.load_checkpoint and _looks_like_a_path(args.load_checkpoint):
            raise ConfigError(
                f"load_checkpoint: {args.load_checkpoint}: no such file or directory; "
                "name one that is there"
            )
        names = ", ".join(sorted(path.stem for path in spec.configs.glob("*.yaml")))
        raise ConfigError(
            f"config: is missing{given}; add --config with one of {names}, or with a YAML file"
        )
    assert isinstance(layers, Layers)
    for change in changes:
        layers.override(change)
    return layers


def _source(spec: ModelFamily, config: str) -> str | dict[str, Any]:
    """A run by name or file; a preset that has no run of its own is a run of defaults."""
    if config in spec.presets and not (spec.configs / f"{config}.yaml").exists():
        return {"model": {"model_config": {"preset": config}}}
    return config


def _changes(args: Namespace, prompts: list[str] | None, texts: Iterable[str]) -> list[Override]:
    from lm_core.config.layers import Override

    found = []
    for flag, key, _, _ in (*FLAGS, *MORE_FLAGS):
        value = getattr(args, flag, None)
        if value is not None:
            found.append(Override.parse(f"{key}={value}", f"--{flag}"))
    if prompts:
        found.append(Override(("input_data",), prompts, "--predict_data"))
    return found + [
        Override.parse(text) for text in [*(getattr(args, "options", None) or ()), *texts]
    ]


def _prompts(data: list[str] | None) -> tuple[list[str] | None, list[str]]:
    """Prompts, and key.sub=value words behind them that argparse took for prompts."""
    from lm_core.config.schema import RunConfig

    if not data:
        return data, []
    changes = []
    for text in data:
        match = re.match(r"([a-z_]+)(?:\[\d+\])?\.[\w.\[\]]+=", text)
        if match and match[1] in RunConfig.model_fields:
            changes.append(text)
    return [text for text in data if text not in changes], changes


def world_size() -> int:
    """How many processes the launcher started."""
    for name in ("MS_WORKER_NUM", "RANK_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 1
