"""Questions about texts with answers, as SQuAD (Rajpurkar et al. 2016) and CMRC2018 write them.

{"data": [{"paragraphs": [{"context": ..., "qas": [
    {"question": ..., "answers": [{"text": ...}, ...]}, ...]}]}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_core.data.jsonfile import leave_out, read_json_value
from lm_core.data.preprocess import Counts
from lm_core.errors import DataError


class Question(NamedTuple):
    """A question about a context, and its different answers."""

    context: str
    question: str
    answers: Sequence[str]


def read_questions(file: Path, counts: Counts) -> Iterator[list[Question]]:
    """The questions about each context; those without an answer are left out and counted.

    Raises:
        DataError: the file cannot be read, or is not of SQuAD's form.
    """
    value = read_json_value(file, counts)
    articles = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(articles, list):
        raise DataError(
            f'{file}: has no list "data"; must be of SQuAD\'s form, {{"data": [{{"paragraphs": '
            f'[{{"context": ..., "qas": [...]}}]}}]}}; name another file'
        )
    for number, article in enumerate(articles, 1):
        for paragraph in _members(article, "paragraphs"):
            yield list(_questions(paragraph, f"{file} article {number}", counts))


def _questions(paragraph: Any, where: str, counts: Counts) -> Iterator[Question]:
    for item in _members(paragraph, "qas"):
        answers = [_text(answer, "text") for answer in _members(item, "answers")]
        answers = [*dict.fromkeys(filter(str.strip, answers))]
        found = Question(_text(paragraph, "context"), _text(item, "question"), answers)
        missing = [name for name, value in zip(found._fields, found, strict=True) if not value]
        if missing:
            leave_out(where, f"questions left out, no {missing[0]}", counts)
        else:
            yield found


def _members(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def _text(value: Any, key: str) -> str:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else ""
