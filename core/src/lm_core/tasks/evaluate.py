"""`evaluate`: the loss of a trained model on records, and its perplexity or accuracy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from lm_core.config.flags import add_run_arguments, resolve_run

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec


def add_arguments(parser: ArgumentParser) -> None:
    """Flags that every run has."""
    add_run_arguments(parser)
    parser.epilog = f"`{parser.prog} humaneval --help`: programs of a model\n\n{parser.epilog}"


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints `PerplexityMetric: {'PerplexityMetric': {'loss': ..., 'PPL': ...}}`, or `Accuracy`."""
    settings = resolve_run(spec, args, overrides)
    from lm_core.trainer import Trainer

    trainer = Trainer(settings)
    result = trainer.evaluate()
    for name in result if trainer.says else ():
        print(f"{name}: {result}")
    return 0
