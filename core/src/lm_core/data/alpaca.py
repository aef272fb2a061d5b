"""Alpaca's instructions as dialogues of one round, each in Alpaca's prompt (Taori et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_core.data.jsonfile import leave_out, read_json_records
from lm_core.data.preprocess import Converter, Counts, Item

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """What the model is asked."""
    # Not str.format: code is full of braces.
    prompt = _WITH_INPUT if context else _WITHOUT_INPUT
    before, after = prompt.split("{instruction}")
    return f"{before}{instruction}{after.replace('{input}', context)}"


def convert(files: Sequence[Path], counts: Counts) -> Iterator[Item]:
    """Dialogues `{"id": "1", "conversations": [...]}`, numbered over all files.

    Records that lack an instruction or an output are left out and counted.

    Raises:
        DataError: a file is no JSON.
    """
    for file in files:
        for record in read_json_records(file, counts):
            counts["records read"] += 1
            missing = _missing(record.value)
            if missing:
                leave_out(record.where, f"records left out, {missing}", counts)
                yield Item(None, record.size)
                continue
            value = record.value
            counts["dialogues"] += 1
            turns = (
                ("human", alpaca_prompt(value["instruction"], value.get("input") or "")),
                ("gpt", value["output"]),
            )
            said = [{"from": role, "value": text} for role, text in turns]
            yield Item({"id": str(counts["dialogues"]), "conversations": said}, record.size)


def _missing(value: Any) -> str:
    """What is wrong with a record, "" if nothing is."""
    if not isinstance(value, Mapping):
        return "no object"
    absent = [key for key in ("instruction", "output") if not isinstance(value.get(key), str)]
    if absent:
        return f"no {' and no '.join(absent)}"
    return "" if isinstance(value.get("input"), str | None) else "an input that is no text"


ALPACA = Converter(
    help="Alpaca's instructions (JSON) to dialogues (JSON), which `preprocess qa` reads",
    suffixes=(".json", ".jsonl"),
    convert=convert,
)
