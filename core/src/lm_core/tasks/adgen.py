"""ADGENMetric: a model answers the questions of a data set, and answers are compared as texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_core.data.answers import prompt_ids
from lm_core.errors import ConfigError
from lm_core.metrics.adgen import NAMES, score
from lm_core.tasks import answering

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.data.adgen import AnswerRecords
    from lm_core.nn.network import Network


def check(run: RunConfig) -> None:
    """Raises ConfigError if the run's evaluation data are no questions with answers."""
    kind = run.eval_dataset.data_loader.type
    if kind != "ADGenDataLoader":
        raise ConfigError(
            f"metric.type: ADGENMetric compares texts, and eval_dataset.data_loader.type is "
            f"{kind}; must be ADGenDataLoader; change it, or set metric.type: PerplexityMetric"
        )


def evaluate(run: RunConfig, model: Network, records: AnswerRecords) -> dict[str, float]:
    """The mean scores of the answers; see `answering.evaluate`."""
    tokenizer, pairs = records.tokenizer, records.pairs[: len(records)]
    references = [
        answering.spelt(tokenizer, tokenizer.encode(pair.answer, add_special_tokens=False))
        for pair in pairs
    ]
    questions = answering.Questions(
        records=records,
        tokenizer=tokenizer,
        prompts=[prompt_ids(tokenizer, pair.content, records.lengths.source) for pair in pairs],
        shown=[
            {"content": pair.content, "reference": reference}
            for pair, reference in zip(pairs, references, strict=True)
        ],
        names=NAMES,
        score=lambda number, prediction: score(prediction, references[number]),
        new_tokens=records.lengths.target,
        shorten="lower eval_dataset.max_source_length",
    )
    return answering.evaluate(run, model, questions)
