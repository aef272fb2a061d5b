"""Corpora to blocks: not a token more or less than in the text."""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections import Counter

import numpy as np
import pytest

from lm_core.data import text as module
from lm_core.data.text import TEXT, WIKITEXT2, Encoded, block_columns, blocks
from lm_core.data.wikitext import clean
from lm_core.errors import DataError

END = "<|endoftext|>"


def flags(*words):
    parser = ArgumentParser()
    WIKITEXT2.add_arguments(parser)
    return parser.parse_args(words)


def run(preprocessor, files, tokenizer, args):
    """Rows and counts, in this process."""
    counts = Counter()
    work = [item.work for item in preprocessor.read(files, args, tokenizer, counts)]
    encoded = (preprocessor.encode(tokenizer, args, one) for one in work)
    return list(preprocessor.records(encoded, args, tokenizer, counts)), counts, len(work)


def real_ids(rows):
    return [int(i) for row in rows for i in row["input_ids"][row["attention_mask"] == 1]]


def whole_text(lines):
    """The corpus as the first program of this kind builds it, with the last passage."""
    made, passage = [], []
    for line in [*lines, "= end ="]:
        line = line.strip()
        if line.startswith("=") and line.endswith("="):
            if passage:
                made.append(" ".join(clean(part) for part in passage))
            passage = []
        elif line:
            passage.append(line)
    return "\n".join(made)


def wiki_lines(seed):
    rng = random.Random(seed)
    words = ["the", "lobster", ",", "water", ".", "(", "cold", ")", "@-@", "N", "'s", "<unk>"]
    words += ['"', "a", "it\tis", "\u4f60\u597d", "'"]
    lines = []
    for _ in range(rng.randrange(200)):
        kind = rng.random()
        if kind < 0.2:
            lines.append(" \n")
        elif kind < 0.4:
            lines.append(rng.choice([" = Title = \n", " = = Section = = \n", "=\n"]))
        else:
            lines.append(f" {' '.join(rng.choices(words, k=rng.randrange(1, 40)))} \n")
    return lines


@pytest.mark.parametrize("item", [1, 50, 1000, 1 << 17])
@pytest.mark.parametrize("seed", range(5))
def test_wikitext_ids_are_those_of_the_whole_text(tokenizer, tmp_path, monkeypatch, seed, item):
    monkeypatch.setattr(module, "_ITEM", item)
    lines = wiki_lines(seed)
    path = tmp_path / "wiki.tokens"
    path.write_text("".join(lines), encoding="utf-8")
    rows, counts, works = run(WIKITEXT2, [path], tokenizer, flags("--max_length", "16"))
    expected = whole_text(lines)
    left = counts["tokens left out at the end"]
    assert real_ids(rows) == tokenizer.encode(expected)[: counts["tokens"] - left]
    assert left <= 1
    assert counts["characters"] == len(expected)
    assert counts["lines read"] == len(lines)
    assert item > 1 or works == counts["passages"]


def test_wikitext_keeps_tabs_and_the_last_passage(tokenizer, tmp_path):
    path = tmp_path / "wiki.tokens"
    path.write_text("= A =\none\ttwo\n= B =\nlast", encoding="utf-8")
    rows, counts, _ = run(WIKITEXT2, [path], tokenizer, flags("--max_length", "64"))
    assert tokenizer.decode(real_ids(rows)) == "one\ttwo\nlast"
    assert counts["headings left out"] == 2


def test_wikitext_is_not_cut_for_a_tokenizer_that_cannot_be_sure(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ITEM", 1)
    monkeypatch.setattr(type(tokenizer), "cuts_at", lambda *_: False)
    path = tmp_path / "wiki.tokens"
    path.write_text("".join(wiki_lines(1)), encoding="utf-8")
    assert run(WIKITEXT2, [path], tokenizer, flags())[2] == 1


def test_line_ends_and_marks_of_other_systems(tokenizer, tmp_path):
    lines = wiki_lines(3)
    unix, windows = tmp_path / "unix.raw", tmp_path / "windows.raw"
    unix.write_bytes("".join(lines).encode())
    windows.write_bytes(("\ufeff" + "".join(lines)).replace("\n", "\r\n").encode())
    got = [
        run(WIKITEXT2, [path], tokenizer, flags("--max_length", "9"))[0] for path in (unix, windows)
    ]
    assert real_ids(got[0]) == real_ids(got[1])


@pytest.mark.parametrize("item", [1, 30, 1 << 17])
def test_documents_end_with_the_end_of_text(tokenizer, tmp_path, monkeypatch, item):
    monkeypatch.setattr(module, "_ITEM", item)
    monkeypatch.setattr(module, "_READ", 7)
    texts = [
        "the water\n",
        "",
        "  \n",
        "cold lobster " * 50,
        f"literal {END} inside",
        "\u4f60" * 99,
    ]
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(text, encoding="utf-8")
    rows, counts, _ = run(TEXT, files, tokenizer, flags("--max_length", "8"))
    full = [text for text in texts if text]
    expected = sum(([*tokenizer.encode(text), tokenizer.eos_token_id] for text in full), [])
    left = counts["tokens left out at the end"]
    assert real_ids(rows) == expected[: len(expected) - left]
    assert (counts["files"], counts["empty files left out"]) == (6, 1)
    assert counts["characters"] == sum(map(len, texts))
    assert counts["tokens"] == len(expected)


@pytest.mark.parametrize("item", [1, 1 << 17])
def test_documents_begin_where_the_tokenizer_says_so(pieces, tmp_path, monkeypatch, item):
    monkeypatch.setattr(module, "_ITEM", item)
    texts = "a lobster", "", "the cold water " * 9
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    files = sorted(tmp_path.iterdir())
    rows, _, _ = run(TEXT, files, pieces, flags("--max_length", "20"))
    expected = [i for text in texts if text for i in (*pieces.encode(text), 2)]
    assert expected.count(1) == 2
    assert real_ids(rows) == expected


@pytest.mark.parametrize("item", [1, 30, 1 << 17])
def test_segments_are_the_documents(tokenizer, tmp_path, monkeypatch, item):
    monkeypatch.setattr(module, "_ITEM", item)
    files = []
    for number, text in enumerate(("water", "a cold lobster " * 9, "", "it", "the cook")):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(text)
    parser = ArgumentParser()
    TEXT.add_arguments(parser)
    args = parser.parse_args(["--max_length", "16", "--packing"])
    rows, _, _ = run(TEXT, files, tokenizer, args)
    assert block_columns(args) == ("input_ids", "attention_mask", "segment_ids")
    document = 0
    for row in rows:
        first = document
        for index, segment, real, label in zip(
            row["input_ids"], row["segment_ids"], row["attention_mask"], row["labels"], strict=True
        ):
            assert segment == (document - first + 1 if real else 0)
            assert label == (index if real else -100)
            document += int(real and index == tokenizer.eos_token_id)
    assert document == 4


def test_bytes_that_are_no_text_are_counted_and_replaced(tokenizer, tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"caf\xe9 \xff\xfe and \xc3\xa9 \xed\xa0\x80.")
    rows, counts, _ = run(TEXT, [path], tokenizer, flags("--max_length", "99"))
    shown = tokenizer.decode(real_ids(rows), skip_special_tokens=True)
    assert shown == "caf\ufffd \ufffd\ufffd and \u00e9 \ufffd\ufffd\ufffd."
    assert counts["bytes that are not UTF-8, read as U+FFFD"] == 6


def test_the_tokenizer_needs_an_end_of_text(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_token", None)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="has no eos_token"):
        run(TEXT, [tmp_path / "x.txt"], tokenizer, flags())


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("length", [2, 3, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_accounted_for(tokenizer, seed, length, remainder):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 40, rng.integers(0, 20))
    ids = np.arange(1, sizes.sum() + 1, dtype=np.int32)
    pieces = (
        [Encoded(part, 1) for part in np.split(ids, np.cumsum(sizes)[:-1])] if len(sizes) else []
    )
    counts = Counter()
    args = flags("--max_length", str(length), "--remainder", remainder)
    rows = list(blocks(pieces, args, tokenizer, counts))
    left = counts["tokens left out at the end"]
    assert real_ids(rows) == ids[: len(ids) - left].tolist()
    assert counts["records"] == len(rows)
    assert counts["tokens"] == len(ids)
    assert left < length if remainder == "drop" else left <= 1
    assert left == 0 or left == len(ids) % length
    for row in rows:
        assert all(value.dtype == np.int32 and value.shape == (length,) for value in row.values())
        padded = row["attention_mask"] == 0
        assert (row["input_ids"][padded] == tokenizer.pad_token_id).all()
        assert (row["labels"][padded] == -100).all()
        assert (row["labels"][~padded] == row["input_ids"][~padded]).all()
        assert row["attention_mask"][1:].any()
    assert all(row["attention_mask"].all() for row in rows[:-1])


def test_flags():
    args = flags()
    assert (args.max_length, args.remainder) == (1025, "pad")
    assert block_columns(args) == ("input_ids", "attention_mask")
    chosen = flags("--data_columns", "labels", "input_ids")
    assert block_columns(chosen) == ("input_ids", "labels")
    with pytest.raises(DataError, match="max_length: 1 leaves no id to predict"):
        block_columns(flags("--max_length", "1"))
    with pytest.raises(DataError, match="data_columns: must hold input_ids"):
        block_columns(Namespace(max_length=5, data_columns=["labels"]))
