"""`pretrain`: trains a model from random weights, or from those of `--load_checkpoint`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from lm_core.config.flags import add_run_arguments, resolve_run
from lm_core.tasks.keyboard import CtrlC

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder of the tokenizer, copied to every checkpoint"
    )


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Trains and saves checkpoints in output_dir."""
    settings = resolve_run(spec, args, overrides)
    with CtrlC() as ctrl_c, ctrl_c.watched():
        from lm_core.trainer import Trainer

        Trainer(settings, tokenizer=args.tokenizer).train(settings.load_checkpoint)
    return 0
