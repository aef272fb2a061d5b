"""`evaluate`: loss and perplexity or accuracy of a trained model, or how good its answers are."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lm_core.config.flags import add_run_arguments, resolve_run
from lm_core.errors import all_of

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.nn.network import Network
    from lm_core.spec import ModelSpec
    from lm_core.tokenizer.base import Tokenizer

ADGEN, EM_F1 = "ADGENMetric", "EmF1Metric"


def add_arguments(parser: ArgumentParser) -> None:
    """Flags that every run has."""
    add_run_arguments(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the checkpoint's)"
    )
    parser.epilog = f"`{parser.prog} humaneval --help`: programs of a model\n\n{parser.epilog}"


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints `PerplexityMetric: {'PerplexityMetric': {'loss': ..., 'PPL': ...}}`, or `Accuracy`.

    Of prompts: `PromptAccMetric: {'PromptAccMetric': {'accuracy': ..., 'total_acc_num': ...,
    'total_num': ...}}`.
    Of answers: `ADGENMetric: {'rouge-1': ..., 'rouge-2': ..., 'rouge-l': ..., 'bleu-4': ...}`, or
    `EmF1Metric: {'Em': ..., 'F1': ..., 'total_count': ...}`.
    """
    settings = resolve_run(spec, args, overrides, kept=("eval_dataset", "metric"))
    if args.num_samples is not None:
        loaders = settings.train_dataset.data_loader, settings.eval_dataset.data_loader
        loaders[1].num_samples = loaders[0].num_samples
    from lm_core.trainer import Trainer

    trainer = Trainer(settings, tokenizer=args.tokenizer)
    result = trainer.evaluate()
    for name, scores in result.items() if trainer.says else ():
        print(f"{name}: {scores if name in (ADGEN, EM_F1) else {name: scores}}")
    return 0


def measure(
    run: RunConfig,
    weights: Callable[[], str | Path],
    load: Callable[[str | Path], Network],
    tokenizer: Callable[[], Tokenizer],
) -> dict[str, dict[str, float]]:
    """The scores that `metric` names, by name.

    Args:
        run: the run.
        weights: says where the weights are, or raises.
        load: gives the model with the weights.
        tokenizer: gives what encodes the texts of the evaluation section.

    Raises:
        LmError: all that is known to be wrong before anything is loaded.
    """
    from lm_core.tasks import adgen, cmrc2018
    from lm_core.train import answers, session

    kinds = {metric.type for metric in run.metric}
    if "adgen" in kinds:
        adgen.check(run)
    if "em_f1" in kinds:
        cmrc2018.check(run)
    run = answers.with_room(run)
    found, records, encoder = all_of(
        weights,
        lambda: session.open_records(run, "eval_dataset", tokenizer),
        lambda: tokenizer() if "em_f1" in kinds else None,
    )
    model, scores = load(found), {}
    with room(model, run.model.config.seq_length):
        if "adgen" in kinds:
            scores[ADGEN] = adgen.evaluate(run, model, records)
        if "em_f1" in kinds:
            scores[EM_F1] = cmrc2018.evaluate(run, model, records, encoder)
        if kinds - {"adgen", "em_f1"}:
            scores[session.metric_name(run)] = session.evaluator(run, model, records)()
    return scores


@contextmanager
def room(model: Network, tokens: int) -> Iterator[None]:
    """Lets a model read longer sequences for a while; see `ModelConfig.widened`."""
    before = model.config
    model.config = before.widened(tokens)
    try:
        yield
    finally:
        model.config = before
