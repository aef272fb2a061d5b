"""EmF1Metric: a model answers questions about texts; how near that is to what people answered.

The questions are records of `preprocess cmrc2018`: a text is known as the tokenizer spells it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_core.data.cmrc2018 import COLUMNS, ROOM, answers_of, prompt_of, question_in
from lm_core.errors import ConfigError, DataError
from lm_core.metrics.em_f1 import NAMES, score
from lm_core.tasks import answering

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.data.records import Records
    from lm_core.nn.network import Network
    from lm_core.tokenizer.base import Tokenizer


def check(run: RunConfig) -> None:
    """Raises ConfigError if the run's evaluation data are no such records, or more is asked."""
    kind, found = run.eval_dataset.data_loader.type, []
    if kind != "MindDataset":
        found.append(
            f"metric.type: EmF1Metric reads records, and eval_dataset.data_loader.type is {kind}; "
            f"must be MindDataset; change it, and write records with `preprocess cmrc2018`"
        )
    if any(metric.type != "em_f1" for metric in run.metric):
        found.append(
            "metric: EmF1Metric is one of several; must be the only one, for its records hold no "
            "text to measure a loss on; remove the others"
        )
    if found:
        raise ConfigError(*found)


def evaluate(
    run: RunConfig, model: Network, records: Records, tokenizer: Tokenizer
) -> dict[str, float]:
    """`Em` and `F1` of the answers, and their `total_count`; see `answering.evaluate`.

    Raises:
        DataError: the records are no questions with answers.
    """
    questions = _questions(records, tokenizer)
    scores = answering.evaluate(run, model, questions)
    return {**scores, "total_count": len(questions.prompts)}


def _questions(records: Records, tokenizer: Tokenizer) -> answering.Questions:
    missing = [name for name in COLUMNS if name not in records.columns]
    if missing:
        raise DataError(
            f"{records.path}: column {', '.join(missing)} is not read; EmF1Metric needs "
            f"{', '.join(COLUMNS)}; set eval_dataset.input_columns to these, and write the records "
            f"with `preprocess cmrc2018`"
        )
    prompts, shown = [], []
    for number, row in enumerate(records.stream(range(len(records)))):
        ids, answers = prompt_of(row, tokenizer), answers_of(row, tokenizer)
        if not ids or not answers:
            raise DataError(
                f"{records.locate(number)}: holds no {'answer' if ids else 'prompt'}; must hold a "
                f"question with its answers; write the records with `preprocess cmrc2018`"
            )
        prompts.append(ids)
        references = [answering.spelt(tokenizer, answer) for answer in answers]
        question = question_in(answering.spelt(tokenizer, ids), tokenizer)
        shown.append({"question": question, "references": references})
    return answering.Questions(
        records=records,
        tokenizer=tokenizer,
        prompts=prompts,
        shown=shown,
        names=NAMES,
        score=lambda number, prediction: score(prediction, shown[number]["references"]),
        new_tokens=ROOM,
        shorten="write the records with a lower --max_length",
    )
