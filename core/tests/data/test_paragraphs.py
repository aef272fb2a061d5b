"""WikiText as paragraphs: each begins and ends, and every token is accounted for."""

from __future__ import annotations

import re
from argparse import ArgumentParser

import numpy as np
import pytest
from outside import DATA

from lm_core.data import paragraphs as module
from lm_core.data.paragraphs import PARAGRAPHS
from lm_core.data.preprocess import Counts
from lm_core.errors import DataError

WIKI = """ = A lobster = \n \n It 's cold , isn 't it ? \n and ( of course ) wet . \n \n
 = = Water = = \n \n The 12 @,@ 000 ponds . \n = = Ponds = = \n the <unk> one \n
 last"""
TEXTS = [
    "It's cold, isn't it?\nand (of course) wet.",
    "The 12,000 ponds.",
    "the <unk> one",
    "last",
]


def flags(*words):
    parser = ArgumentParser()
    PARAGRAPHS.add_arguments(parser)
    return parser.parse_args(words)


def run(files, tokenizer, *words):
    """Rows and counts."""
    args, counts = flags(*words), Counts()
    work = [item.work for item in PARAGRAPHS.read(files, args, tokenizer, counts)]
    encoded = (PARAGRAPHS.encode(tokenizer, args, one) for one in work)
    return list(PARAGRAPHS.records(encoded, args, tokenizer, counts)), counts


@pytest.fixture
def wiki(tmp_path):
    path = tmp_path / "wiki.tokens"
    path.write_text(WIKI)
    return path


def stream(tokenizer, texts):
    ids = [[1, *tokenizer.encode(text, add_special_tokens=False), 2] for text in texts]
    return sum(ids, []), ids


@pytest.mark.parametrize("item", [1, 30, 1 << 17])
def test_paragraphs_one_after_the_other(pieces, wiki, monkeypatch, item):
    monkeypatch.setattr(module, "_ITEM", item)
    rows, counts = run([wiki], pieces, "--seq_length", "9")
    ids, _ = stream(pieces, TEXTS)
    left = len(ids) % 10
    assert np.concatenate([row["input_ids"] for row in rows]).tolist() == ids[: len(ids) - left]
    assert counts["tokens left out at the end"] == left
    assert (counts["tokens"], counts["paragraphs"]) == (len(ids), 4)
    assert (counts["headings left out"], counts["records"]) == (3, len(ids) // 10)
    assert {row["input_ids"].dtype for row in rows} == {np.dtype("int32")}


def test_words_that_wikitext_left_out_are_the_unknown_token(pieces, wiki):
    pieces.split_special_tokens = True  # as Llama's tokenizer is used otherwise
    try:
        rows, _ = run([wiki], pieces, "--seq_length", "1")
    finally:
        pieces.split_special_tokens = False
    assert [int(i) for row in rows for i in row["input_ids"]].count(pieces.unk_token_id) == 1


def test_repeated_text_is_cut_as_one(pieces, wiki):
    rows, counts = run([wiki], pieces, "--seq_length", "9", "--repeat", "3")
    ids = stream(pieces, TEXTS)[0] * 3
    assert np.concatenate([row["input_ids"] for row in rows]).tolist() == ids[: len(ids) // 10 * 10]
    assert counts["tokens"] == len(ids)
    assert counts["paragraphs"] == 4


def test_several_files_are_one_text(pieces, wiki):
    rows, _ = run([wiki, wiki], pieces, "--seq_length", "9")
    twice, _ = run([wiki], pieces, "--seq_length", "9", "--repeat", "2")
    assert [row["input_ids"].tolist() for row in rows] == [
        row["input_ids"].tolist() for row in twice
    ]


@pytest.mark.parametrize("item", [1, 1 << 17])
def test_segments_are_the_paragraphs(pieces, wiki, monkeypatch, item):
    monkeypatch.setattr(module, "_ITEM", item)
    rows, _ = run([wiki], pieces, "--seq_length", "14", "--packing", "--repeat", "2")
    owners = [k for k, ids in enumerate(stream(pieces, TEXTS * 2)[1]) for _ in ids]
    for number, row in enumerate(rows):
        mine = np.array(owners[15 * number : 15 * number + 15])
        assert row["segment_ids"].tolist() == (mine - mine[0] + 1).tolist()
    assert PARAGRAPHS.columns(flags("--packing")) == ("input_ids", "segment_ids")


def test_too_little_text_says_how_much_there_is(pieces, wiki):
    count = len(stream(pieces, TEXTS)[0])
    with pytest.raises(DataError, match=rf"has {count} tokens, a record needs 1,001"):
        run([wiki], pieces, "--seq_length", "1000")


def test_flags(tokenizer):
    assert PARAGRAPHS.columns(flags()) == ("input_ids",)
    assert flags().seq_length == 2048
    with pytest.raises(DataError, match="repeat: 0 writes nothing"):
        PARAGRAPHS.columns(flags("--repeat", "0"))
    with pytest.raises(DataError, match="has no bos_token or no eos_token"):
        list(PARAGRAPHS.read([], flags(), tokenizer, Counts()))


def cleaned_whole(text):
    """The original script's cleaning of a whole file, but for brackets and quotes.

    Those it pairs across paragraphs, an apostrophe with the next one wherever that is.
    """
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;":
        text = text.replace(f" {mark} ", f"{mark} ")
    text = text.replace(" . ", ". ").replace(" .", ".").replace(" ! ", "! ").replace(" ? ", "? ")
    text = text.replace(" , ", ", ")
    text = text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}").replace(" \n", "\n")
    return text.replace("\n ", "\n").replace(" N ", " 1 ").replace(" 's", "'s")


@pytest.mark.parity
def test_paragraphs_are_those_of_the_original(pieces):
    path = DATA / "wikitext2" / "wiki.valid.tokens"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    text = cleaned_whole(path.read_text(encoding="utf-8"))
    theirs = [part.strip() for part in text.split("\n\n") if part.strip()]
    theirs = [part for part in theirs if not part.startswith("=")]
    items = list(PARAGRAPHS.read([path], flags(), pieces, Counts()))
    ours = [part for item in items for part in module.texts(item.work)]
    assert [re.sub(r"\s", "", part) for part in ours] == [
        re.sub(r"\s", "", part) for part in theirs
    ]
    plain = [k for k, part in enumerate(theirs) if not re.search(r"[][(){}\"']", part)]
    assert [ours[k] for k in plain] == [theirs[k] for k in plain]
    assert len(plain) > 30
