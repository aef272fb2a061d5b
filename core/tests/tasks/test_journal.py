"""Answers that are appended: whose they are, who writes them, what they follow from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.errors import ConfigError
from lm_core.tasks.journal import Journal, Task, answers

FACTS = {"seed": 3, "weights": "a"}


def journal(folder, **facts):
    return Journal(folder / "samples.jsonl", ("text",), {**FACTS, **facts})


def write(found, batches, rank=0, **options):
    texts = [[{"text": text} for text in batch] for batch in batches]
    found.write(texts, rank=rank, unit="sample", done=0, total=9, **options)


def test_batches_are_there_with_their_settings_as_they_come(tmp_path):
    found, seen = journal(tmp_path), []

    def batches():
        for text in "ab":
            yield [{"text": text}]
            seen.append([record["text"] for record in journal(tmp_path).read()])

    found.write(batches(), rank=0, unit="sample", done=0, total=2)
    assert seen == [["a"], ["a", "b"]]
    assert json.loads((tmp_path / "samples.settings.json").read_text()) == FACTS
    write(journal(tmp_path), ["c"], note=lambda batch: seen.append(batch) or "")
    assert [record["text"] for record in found.read()] == ["a", "b", "c"]
    assert seen[-1] == [{"text": "c"}]


def test_other_ranks_compute_and_do_not_write(tmp_path):
    made = []
    journal(tmp_path).write(
        (made.append(n) or [{"text": ""}] for n in range(3)), rank=1, unit="x", done=0, total=3
    )
    assert made == [0, 1, 2] and not list(tmp_path.iterdir())


def test_answers_of_others_are_refused(tmp_path):
    write(journal(tmp_path), ["a"])
    with pytest.raises(ConfigError, match="holds samples of another run .seed was 3 and is 4.; mu"):
        journal(tmp_path, seed=4)
    with pytest.raises(ConfigError, match="more was None and is 1"):
        journal(tmp_path, more=1)
    (tmp_path / "samples.settings.json").unlink()
    with pytest.raises(ConfigError, match="samples.settings.json is missing"):
        journal(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"text": "torn')
    assert journal(tmp_path).read() == []


def test_batches_hold_one_copy_of_prompts_each_with_a_seed_of_its_own():
    calls = []

    def continue_ids(ids, **options):
        calls.append((ids, options))
        return [np.array([*row, len(calls)]) for row in ids]

    tasks = [Task("a", [1, 2, 3]), Task("b", [5]), Task("c", [5], 1), Task("d", [7, 8])]
    found = list(answers(SimpleNamespace(continue_ids=continue_ids), tasks, 2, 3, stop="stop"))
    keys = [[task.key for task, _ in batch] for batch in found]
    assert keys == [["b", "d"], ["a"], ["c"]]
    assert [call[0] for call in calls] == [[[5], [7, 8]], [[1, 2, 3]], [[5]]]
    assert all(options["stop"] == "stop" and options["batch_size"] == 2 for _, options in calls)
    seeds = [options["seed"] for _, options in calls]
    assert seeds[0] == seeds[1] != seeds[2]
    assert [row.tolist() for _, row in found[0]] == [[5, 1], [7, 8, 1]]
