"""JSON to dialogues: every form that is written, and everything left out is counted."""

from __future__ import annotations

import json

import pytest

from lm_core.data.dialogues import Dialogue, read_dialogues
from lm_core.data.jsonfile import read_json_records
from lm_core.data.preprocess import Counts
from lm_core.errors import DataError


def share(*turns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def chat(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def read(tmp_path, *records):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    counts = Counts()
    found = [dialogue for item in read_dialogues([path], counts) for dialogue in item.work]
    return found, {name: n for name, n in counts.items() if name != "dialogues read"}


GOOD = [
    share(("human", "q"), ("gpt", "a")),
    share(("user", "q"), ("assistant", "a")),
    share(("Human", "q"), ("chatgpt", "a")),
    chat(("user", "q"), ("assistant", "a")),
    {"conversations": chat(("user", "q"), ("assistant", "a"))["messages"], "id": 3},
]


@pytest.mark.parametrize("record", GOOD)
def test_forms_of_one_dialogue(tmp_path, record):
    assert read(tmp_path, record) == ([Dialogue([("q", "a")])], {})


def test_system(tmp_path):
    turns = ("human", "q"), ("gpt", "")
    found, counts = read(
        tmp_path,
        share(("system", "S"), *turns),
        share(*turns) | {"system": "T"},
        share(("system", ""), *turns) | {"system": "T"},
        share(*turns) | {"system": None},
    )
    assert [one.system for one in found] == ["S", "T", "", None]
    assert not counts


def test_turns_of_the_wrong_side_at_the_ends_are_skipped(tmp_path):
    found, counts = read(
        tmp_path,
        share(("gpt", "x"), ("gpt", "y"), ("human", "q"), ("gpt", "a"), ("human", "z")),
        share(("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b")),
    )
    assert [one.rounds for one in found] == [[("q", "a")], [("q", "a"), ("r", "b")]]
    assert counts == {
        "answers before the first question skipped": 2,
        "questions without an answer skipped": 1,
    }


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (share(), "no question with an answer"),
        (share(("human", "q")), "no question with an answer"),
        (share(("gpt", "a")), "no question with an answer"),
        (share(("system", "s")), "no question with an answer"),
        (share(("human", "q"), ("human", "q"), ("gpt", "a")), "questions and answers not in turn"),
        (share(("human", "q"), ("gpt", "a"), ("gpt", "a")), "questions and answers not in turn"),
        (
            share(("human", "q"), ("gpt", "a"), ("system", "s"), ("gpt", "b")),
            "questions and answers not in turn",
        ),
        (share(("robot", "q"), ("gpt", "a")), "unknown role"),
        (share(("human", None), ("gpt", "a")), "a turn without text"),
        ({"conversations": [["human", "q"]]}, "a turn without text"),
        ({"conversations": "q"}, "no conversations or messages"),
        ({"id": "q"}, "no conversations or messages"),
        ({"instruction": "q"}, "instructions (`preprocess alpaca` makes dialogues of them)"),
        (share(("human", "q"), ("gpt", "a")) | {"system": 3}, "a system that is no text"),
        ([], "no object"),
    ],
)
def test_other_records_are_left_out_counted_and_named_once(tmp_path, caplog, record, reason):
    found, counts = read(tmp_path, GOOD[0], record, record)
    assert found == [Dialogue([("q", "a")])]
    assert counts == {f"dialogues left out, {reason}": 2}
    assert caplog.text.count("x.json record 2: dialogues left out") == 1
    assert "record 3" not in caplog.text


def test_lines_and_arrays_are_read_alike(tmp_path):
    values = [{"a": "\u4f60\n"}, {"b": [1, None]}, {}]
    array, lines, one_line = (tmp_path / name for name in ("a.json", "b.jsonl", "c.json"))
    array.write_text("\ufeff \n" + json.dumps(values, indent=2), encoding="utf-8")
    one_line.write_text(json.dumps(values))
    lines.write_text("\n\n".join(map(json.dumps, values)) + "\n  \n")
    for path in (array, lines, one_line):
        counts = Counts()
        assert [record.value for record in read_json_records(path, counts)] == values
    assert [record.where for record in read_json_records(lines, Counts())] == [
        f"{lines} line {number}" for number in (1, 3, 5)
    ]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: is no JSON"),
        ('[\n{"a": 1},\n{"a" 1}]', "line 3: is no JSON"),
        ("hello", "line 1: is no JSON"),
        ('["a"]\n["b"]', "line 2: is no JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, text, where):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        list(read_json_records(path, Counts()))
    (line,) = error.value.problems
    assert where in line
    assert "\n" not in line
    assert str(path) in line


def test_items_are_many_and_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_core.data.dialogues._ITEM", 100)
    path = tmp_path / "x.json"
    records = [share(("human", f"{k}" * 30), ("gpt", "a")) for k in range(20)]
    path.write_text(json.dumps(records))
    items = list(read_dialogues([path], Counts()))
    assert len(items) > 5
    assert [d.rounds[0][0][0] for item in items for d in item.work] == [
        str(k)[0] for k in range(20)
    ]
    assert 0 <= path.stat().st_size - sum(item.size for item in items) < 20
