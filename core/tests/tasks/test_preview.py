"""`lm preview`: causal records, records with masked labels, records with a class."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import lm_core
from lm_core import cli
from lm_core.data.mindrecord import RecordWriter
from lm_core.tasks import preview

TEXT = [ord(letter) for letter in "Hello you"]


def write(path, rows, columns=("input_ids",)):
    with RecordWriter(path, columns) as writer:
        for row in rows:
            writer.write({k: np.array(v, np.int32) for k, v in zip(columns, row, strict=True)})
    return str(path)


@pytest.fixture
def letters(look, monkeypatch):
    """Folders called "words" hold a vocabulary; notes which one was read."""
    read = []

    def load(folder, family=None):
        read.append(str(folder))
        return look.tokenizer(folder)

    fake = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "lm_core.auto", fake)
    monkeypatch.setattr(lm_core, "auto", fake, raising=False)
    return read


def said(capsys, *words: str) -> list[str]:
    assert cli.main(["preview", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_causal_records(letters, tmp_path, capsys):
    path = write(tmp_path / "a.mindrecord", 5 * [[[*TEXT, 1, 0, 0, 0, 0]]])
    lines = said(capsys, path, "--tokenizer", "words", "--count", "1")
    assert lines == [
        f"{path}: 5 records in 1 file",
        "columns: input_ids",
        "ids in a record: 14 to 14, on average 14.0",
        "trained: 45 of 70 ids, 64.3 %",
        "",
        "record 0: 14 ids, 9 trained",
        "H[ello you\\x01] ... 4 x id 0",
    ]
    assert letters == ["words"]


def test_records_with_labels(letters, tmp_path, capsys):
    labels = [*[-100] * 6, *TEXT[6:], -100, -100]
    row = [[*TEXT, 0, 0], [1] * 9 + [0, 0], labels]
    path = write(tmp_path / "a.mindrecord", [row], ("input_ids", "attention_mask", "labels"))
    lines = said(capsys, path, "--tokenizer", "words")
    assert lines[-2:] == ["record 0: 11 ids, 9 of them text, 3 trained", "Hello [you]\\x00\\x00"]
    assert "trained: 3 of 11 ids, 27.3 %" in lines


def test_records_of_several_documents(letters, tmp_path, capsys):
    row = [[*TEXT[:5], 1, *TEXT[6:], 0, 0], [1] * 6 + [2] * 3 + [0] * 2]
    path = write(tmp_path / "a.mindrecord", [row], ("input_ids", "segment_ids"))
    lines = said(capsys, path, "--tokenizer", "words")
    assert lines[-2] == "record 0: 11 ids, documents: 2, 7 trained"
    assert lines[-1].startswith("H[ello\\x01]y[ou]")


def test_records_with_a_class(letters, tmp_path, capsys):
    rows = [[TEXT, [label]] for label in (2, 0, 2)]
    path = write(tmp_path / "a.mindrecord", rows, ("input_ids", "labels"))
    lines = said(capsys, path, "--tokenizer", "words", "--count", "9")
    assert "labels: 0 (1 times), 2 (2 times)" in lines
    assert lines[-2:] == ["record 2: label 2, 9 ids", "Hello you"]
    assert sum(line.startswith("record ") for line in lines) == 3


def test_ids_without_a_vocabulary(letters, tmp_path, capsys, caplog):
    path = write(tmp_path / "a.mindrecord", [[[5, 6, 7, 7, 7, 7, 0]]])
    logging.getLogger("lm_core").addHandler(caplog.handler)
    try:
        assert said(capsys, path)[-1] == "5 [6 7 7 7 7 0]"
        assert said(capsys, path, "--config", "toy")[-1] == "5 [6 7 7 7 7] 0"
        assert said(capsys, path, "--max_tokens", "2")[-1] == "5 [6] ... 5 more ids"
    finally:
        logging.getLogger("lm_core").removeHandler(caplog.handler)
    assert "ids are shown: add --tokenizer DIR" in caplog.text and letters == []


def test_a_vocabulary_near_the_records(letters, tmp_path, capsys):
    (tmp_path / "records").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    path = write(tmp_path / "records" / "a.mindrecord", [[TEXT]])
    assert said(capsys, path)[-1] == "H[ello you]"
    assert said(capsys, str(tmp_path / "records"))[-1] == "H[ello you]"
    assert letters == 2 * [str(tmp_path / "tokenizer")]


def test_the_vocabulary_of_a_run(letters, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "vocab.json").write_text("{}")
    run = tmp_path / "run.yaml"
    run.write_text(
        f"base: toy\nprocessor: {{tokenizer: {{vocab_file: {tmp_path}/mine/vocab.json}}}}"
    )
    path = write(tmp_path / "a.mindrecord", [[TEXT]])
    assert said(capsys, path, "--config", str(run))[-1] == "H[ello you]"


def test_records_cannot_take_over_the_terminal():
    painter = preview.Painter(
        SimpleNamespace(vocab_size=200, decode=lambda ids, **_: "\x1b[2J\r"), 9, False
    )
    assert painter(np.array([7]), np.array([False])) == "\\x1b[2J\\x0d"
    assert painter(np.array([7, 300]), np.array([False, True])) == "\\x1b[2J\\x0d[<id 300>]"


def test_colour_is_for_terminals(monkeypatch):
    painter = preview.Painter(None, 9, True)
    assert painter(np.array([7, 8]), np.array([False, True])) == "7 \x1b[32m8\x1b[0m"
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert preview._coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not preview._coloured()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["a.mindrecord", "--config", "nix.yaml"], "'nix.yaml' is neither a file nor one of"),
        (["b.mindrecord"], "has no column input_ids; it has labels"),
        (["c.mindrecord"], "c.mindrecord record 0: attention_mask holds 2 values for 3 ids"),
        (["a.mindrecord", "--tokeniser", "x"], "did you mean --tokenizer?"),
    ],
)
def test_refused(letters, capsys, words, message):
    write("a.mindrecord", [[TEXT]])
    write("b.mindrecord", [[[1, 2]]], ("labels",))
    write("c.mindrecord", [[[1, 2, 3], [1, 1]]], ("input_ids", "attention_mask"))
    assert cli.main(["preview", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


def test_a_count_must_be_a_number(capsys):
    assert cli.main(["preview", "x", "--count", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: command line: --count") and "'0' is no whole number" in line
