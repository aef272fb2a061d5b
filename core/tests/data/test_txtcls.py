"""Labelled texts to records: every text keeps its label, and nothing goes in silence."""

from __future__ import annotations

import csv
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core.data.txtcls import COLUMNS, TXTCLS, dataset_name
from lm_core.errors import DataError

END = "<|endoftext|>"


@pytest.fixture
def convert(tokenizer, tmp_path):
    """`convert(name, file or content, *flags, suffix=)` -> texts with classes, rows, counts."""

    def run(name, content, *flags, suffix=".tsv"):
        file = content
        if not isinstance(content, Path):
            file = tmp_path / f"input{suffix}"
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        parser = ArgumentParser()
        TXTCLS.add_arguments(parser)
        args = parser.parse_args(["--dataset_name", name, *flags])
        assert TXTCLS.columns(args) == COLUMNS
        counts = Counter()
        work = [item.work for item in TXTCLS.read([file], args, tokenizer, counts)]
        encoded = (TXTCLS.encode(tokenizer, args, one) for one in work)
        rows = list(TXTCLS.records(encoded, args, tokenizer, counts))
        texts = [
            (tokenizer.decode(row["input_ids"][row["attention_mask"] == 1]), int(row["labels"][0]))
            for row in rows
        ]
        return texts, rows, counts

    return run


TWO = [("the cook", 1), ("the water", 0)]


@pytest.mark.parametrize(
    ("name", "content", "suffix"),
    [
        ("sst_2", "sentence\tlabel\nthe cook \t1\nthe water \t0\n", ".tsv"),
        ("sst_2", "the cook \t1\nthe water \t0", ".tsv"),
        ("sst_2", "label\tsentence\r\n1\tthe cook\r\n\r\n0\tthe water\r\n", ".tsv"),
        ("sst_2", "sentence,label\nthe cook,positive\nthe water,NEG\n", ".csv"),
        ("cola", "gj04\t1\t\tthe cook\ngj04\t0\t*\tthe water\n", ".tsv"),
        ("cola", "index\tsentence\tlabel\n0\tthe cook\t1\n1\tthe water\t0\n", ".tsv"),
        ("imdb", "label,text,is_valid\npositive,the cook,False\nnegative,the water,True\n", ".csv"),
        ("imdb", 'review,sentiment\r\n"the cook",positive\r\nthe water,negative\r\n', ".csv"),
        ("imdb", "the cook,positive\nthe water,negative\n", ".csv"),
        ("ag_news", "Class Index,Text\n2,the cook\n1,the water\n", ".csv"),
    ],
)
def test_headers_columns_and_words_are_found(convert, name, content, suffix):
    texts, _, counts = convert(name, content, suffix=suffix)
    assert texts == TWO
    assert counts["records"] == 2
    header = content.split("\n")[0].lower().startswith(("sent", "lab", "ind", "rev", "class"))
    assert counts["header lines"] == header


def test_the_byte_order_mark_is_no_text(convert):
    assert convert("sst_2", b"\xef\xbb\xbfthe cook\t1\nthe water\t0\n")[0] == TWO


def test_tabs_split_and_quotes_do_not_in_tsv(convert):
    texts, _, _ = convert("cola", 'l-93\t1\t\tthe cook "water\nl-93\t0\t*\tthe "old" water\n')
    assert texts == [('the cook "water', 1), ('the "old" water', 0)]


def test_quoted_cells_hold_commas_quotes_and_lines(convert):
    content = '"3","the ""old"" cook","a, b\nc"\n"4","\\water","it"\n'
    texts, _, counts = convert("ag_news", content, suffix=".csv")
    assert texts == [('the "old" cook. a, b\nc', 2), ("\\water. it", 3)]
    assert convert("ag_news", "1,,the cook\n1,,\n", suffix=".csv")[0] == [("the cook", 0), (END, 0)]
    assert [counts[f"class {k} ({n})"] for k, n in enumerate(("World", "Sports"))] == [0, 0]


def test_other_line_ends_of_unicode_are_text(convert):
    texts, _, _ = convert("sst_2", "the\u2028cook\x85 a\x0cb\rc\t1\r\n")
    assert texts == [("the\u2028cook\x85 a\x0cb\rc", 1)]


def test_nothing_goes_in_silence(convert):
    content = b"the cook\t1\n\n \t \n\t0\nthe \xff water\t0\n"
    texts, rows, counts = convert("sst_2", content)
    assert [label for _, label in texts] == [1, 0, 0]
    assert texts[1][0] == END and rows[1]["attention_mask"].sum() == 1
    assert counts["blank lines left out"] == 2
    assert counts["empty texts, written as the end-of-text token"] == 1
    assert counts["bytes that are not UTF-8, read as U+FFFD"] == 1
    assert (counts["class 0 (negative)"], counts["class 1 (positive)"]) == (2, 1)


def test_what_is_too_long_keeps_its_beginning(convert, tokenizer):
    text = "the lobster and the old cook " * 3
    ids = tokenizer.encode(text.strip())
    _, rows, counts = convert("sst_2", f"{text}\t1\nthe\t0\n", "--max_length", "5")
    assert [row["input_ids"].shape for row in rows] == [(5,), (5,)]
    assert rows[0]["input_ids"].tolist() == ids[:5] and rows[0]["attention_mask"].all()
    short = tokenizer.encode("the")
    pad = [tokenizer.pad_token_id] * (5 - len(short))
    assert rows[1]["input_ids"].tolist() == short + pad
    assert rows[1]["attention_mask"].tolist() == [1] * len(short) + [0] * len(pad)
    assert all(row[name].dtype == np.int32 for row in rows for name in COLUMNS)
    assert counts["texts cut to max_length"] == 1
    assert counts["tokens cut off"] == len(ids) - 5
    assert counts["tokens of the longest text"] == len(ids)
    assert counts["tokens"] == len(ids) + len(short)


@pytest.mark.parametrize("item", [1, 30])
def test_items_do_not_change_the_rows(convert, monkeypatch, item):
    content = "".join(f"the cook {k}\t{k % 2}\n" for k in range(20))
    whole = convert("sst_2", content)
    monkeypatch.setattr("lm_core.data.preprocess._ITEM", item)
    parts = convert("sst_2", content)
    assert parts[0] == whole[0] and parts[2] == whole[2]


def test_header_and_first_label_can_be_said(convert):
    assert convert("sst_2", "Satz\tKlasse\nthe cook\t1\n", "--header", "True")[0] == TWO[:1]
    assert convert("sst_2", "the cook\t1\n", "--header", "False")[0] == TWO[:1]
    words = "0,a,b\n3,c,d\n"
    found = convert("ag_news", words, "--first_label", "0", suffix=".csv")[0]
    assert [label for _, label in found] == [0, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst_2", "index\tsentence\n0\tthe cook\n", "has no labels, its columns are index, sent"),
        ("cola", "index\tsentence\n0\tthe cook\n", "has no labels"),
        ("cola", "the cook\t1\n", "line 1: has 2 columns; cola has source, label, mark, sentence"),
        ("sst_2", "the cook\t1\nthe water\n", "line 2: has 1 columns; must have 2"),
        ("sst_2", "the cook\t1\nthe water\t2\n", "line 2: the label is '2'; must be 0, 1 or neg"),
        ("sst_2", "the cook\t-1\n", "line 1: the label is '-1'"),
        ("sst_2", "the cook\t\n", "line 1: the label is ''"),
        ("sst_2", "Satz\tKlasse\nthe cook\t1\n", "line 1: the label is 'Klasse'.*--header"),
        ("sst_2", "label\tid\n1\t2\n", "has the columns label, id; must have one label and one of"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(convert, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        convert(name, content)
    assert len(error.value.problems) == 1 and "\n" not in error.value.problems[0]


def test_a_quote_that_does_not_close(convert):
    content = '"1","a","b"\n\n"2","c","d\n"3","e","f"\n'
    with pytest.raises(DataError, match=r"input.csv line 3: is no CSV"):
        convert("ag_news", content, suffix=".csv")
    with pytest.raises(DataError, match=r"line 1: the label is '0'; must be 1, 2, 3, 4 or World"):
        convert("ag_news", "0,a,b\n", suffix=".csv")


def test_flags(convert):
    for word in ("SST-2", "sst2", "sst_2", "Sst 2"):
        assert dataset_name(word) == "sst_2"
    assert dataset_name("AG-News") == "ag_news" and dataset_name("COLA") == "cola"
    with pytest.raises(ArgumentTypeError, match="'mnli' is no data set; use one of cola"):
        dataset_name("mnli")
    with pytest.raises(DataError, match="max_length: 0 holds no token"):
        convert("sst_2", "the cook\t1\n", "--max_length", "0")


REAL = {
    "cola/train.tsv": ("cola", [2162, 5088]),
    "cola/dev.tsv": ("cola", [322, 721]),
    "sst2/dev.tsv": ("sst_2", [428, 444]),
    "ag_news/train_sample_600.csv": ("ag_news", [163, 132, 137, 149]),
    "imdb/imdb_sample_1000.csv": ("imdb", [524, 476]),
}


@pytest.mark.parametrize("file", REAL)
def test_the_published_files(convert, tokenizer, file):
    """No text is lost, the first and the last neither."""
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    name, expected = REAL[file]
    texts, rows, counts = convert(name, path, "--max_length", "4000")
    labels = Counter(int(row["labels"][0]) for row in rows)
    assert [labels[k] for k in range(len(expected))] == expected
    assert [n for c, n in counts.items() if c.startswith("class ")] == expected
    with path.open(encoding="utf-8", newline="") as handle:
        quoted = path.suffix == ".csv"
        lines = list(csv.reader(handle)) if quoted else [x.rstrip("\n").split("\t") for x in handle]
    at = {"cola": 3, "sst_2": 0, "imdb": 1}.get(name)
    start = counts["header lines"]
    for k in (start, start + 1, -1):
        cells = lines[k]
        text = cells[at].strip() if at is not None else f"{cells[1].strip()}. {cells[2].strip()}"
        assert texts[k - start if k >= 0 else k][0] == text
    assert len(texts) == len(lines) - start


@pytest.mark.parametrize("file", ["cola/test.tsv", "sst2/test.tsv"])
def test_published_test_files_have_no_labels(convert, file):
    if not (DATA / file).is_file():
        pytest.skip(f"{DATA / file} is not here")
    with pytest.raises(DataError, match="test.tsv: has no labels.*published without"):
        convert(file.split("/")[0], DATA / file)
