"""Instructions to dialogues, as the card of Code Llama shows them."""

from __future__ import annotations

import json

import pytest

from lm_core.data.alpaca import ALPACA, alpaca_prompt
from lm_core.data.dialogues import parse_dialogue
from lm_core.data.preprocess import Counts

ARRAY = "Create an array of length 5 which contains all even numbers between 1 and 10."


def convert(tmp_path, *records):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records))
    counts = Counts()
    items = list(ALPACA.convert([path], counts))
    return [item.work for item in items if item.work is not None], counts


def test_the_example_of_the_card(tmp_path):
    (found,), _ = convert(
        tmp_path, {"instruction": ARRAY, "input": "", "output": "arr = [2, 4, 6, 8, 10]"}
    )
    assert found == {
        "id": "1",
        "conversations": [
            {
                "from": "human",
                "value": "Below is an instruction that describes a task. Write a response that "
                "appropriately completes the request.\n\n"
                f"### Instruction:\n{ARRAY}\n\n### Response:",
            },
            {"from": "gpt", "value": "arr = [2, 4, 6, 8, 10]"},
        ],
    }
    assert list(found) == ["id", "conversations"]


def test_with_an_input(tmp_path):
    (found,), _ = convert(tmp_path, {"instruction": "{input} {0}", "input": "%s {x}", "output": ""})
    assert found["conversations"][0]["value"] == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{input} {0}\n\n### Input:\n%s {x}\n\n### Response:"
    )


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}])
def test_no_input(tmp_path, empty):
    (found,), _ = convert(tmp_path, {"instruction": "q", "output": "a"} | empty)
    assert found["conversations"][0]["value"] == alpaca_prompt("q")
    assert "Input" not in alpaca_prompt("q")


def test_incomplete_records_are_left_out_counted_and_named(tmp_path, caplog):
    good = {"instruction": "q", "output": "a"}
    found, counts = convert(
        tmp_path,
        *(good, {"instruction": "q"}, {"output": "a"}, {}, 3, good | {"input": 3}),
        *(good | {"output": None}, good),
    )
    assert [one["id"] for one in found] == ["1", "2"]
    assert counts == {
        "records read": 8,
        "dialogues": 2,
        "records left out, no output": 2,
        "records left out, no instruction": 1,
        "records left out, no instruction and no output": 1,
        "records left out, no object": 1,
        "records left out, an input that is no text": 1,
    }
    assert "x.json record 2: records left out, no output" in caplog.text
    assert "record 7" not in caplog.text


def test_they_are_dialogues_of_one_round(tmp_path):
    (found,), _ = convert(tmp_path, {"instruction": "q", "output": "a"})
    dialogue = parse_dialogue(found, Counts())
    assert dialogue.rounds == [(alpaca_prompt("q"), "a")]
