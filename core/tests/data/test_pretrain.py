"""Text of many files in one row: documents, their ends, and every token accounted for."""

from __future__ import annotations

import json
from argparse import ArgumentParser

import numpy as np
import pytest

from lm_core.data import pretrain as module
from lm_core.data.preprocess import Counts
from lm_core.data.pretrain import PRETRAIN
from lm_core.errors import DataError

PLAIN = "The first one.\nIts second line.\n\n \nAnother  document \n\n\n\nThe last, no line end"
DOCUMENTS = ["The first one.\nIts second line.", "Another  document ", "The last, no line end"]


def flags(*words):
    parser = ArgumentParser()
    PRETRAIN.add_arguments(parser)
    return parser.parse_args(words)


def run(files, tokenizer, *words):
    """Rows and counts."""
    args, counts = flags(*words), Counts()
    work = [item.work for item in PRETRAIN.read(files, args, tokenizer, counts)]
    encoded = (PRETRAIN.encode(tokenizer, args, one) for one in work)
    return list(PRETRAIN.records(encoded, args, tokenizer, counts)), counts


def ids_of(rows):
    return np.concatenate([row["input_ids"] for row in rows]).tolist()


def stream(tokenizer, texts, end):
    """Each behind the tokens that begin every text of this vocabulary."""
    plain = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return sum(([*tokenizer.prefix_ids, *ids, end] for ids in plain), [])


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(PLAIN)
    return path


@pytest.mark.parametrize("item", [1, 10, 1 << 15])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_documents_one_after_the_other(plain, request, monkeypatch, item, kind):
    """Whether or not long ones may be cut to be encoded."""
    tokenizer = request.getfixturevalue({"bytes": "tokenizer", "pieces": "pieces"}[kind])
    monkeypatch.setattr(module, "_ITEM", item)
    rows, counts = run([plain, plain], tokenizer, "--seq_length", "7")
    ids = stream(tokenizer, DOCUMENTS * 2, tokenizer.eos_token_id)
    left = len(ids) % 7
    assert ids_of(rows) == ids[: len(ids) - left]
    assert counts["tokens left out at the end"] == left
    assert (counts["tokens"], counts["documents"], counts["files"]) == (len(ids), 6, 2)
    assert counts["characters"] == 2 * sum(map(len, DOCUMENTS))


def test_a_token_of_the_users_ends_documents(plain, pieces):
    rows, _ = run([plain], pieces, "--seq_length", "2", "--eot", "7")
    ids = stream(pieces, DOCUMENTS, 7)
    assert ids_of(rows) == ids[: len(ids) // 2 * 2]


@pytest.mark.parametrize("eot", [340, -1, 40000])
def test_a_token_outside_the_vocabulary(plain, pieces, eot):
    with pytest.raises(DataError, match=rf"eot: {eot} is outside the vocabulary of 340") as error:
        run([plain], pieces, "--eot", str(eot))
    assert "such as 2 (</s>)" in str(error.value)


def test_wikitext(tmp_path, pieces):
    path = tmp_path / "wiki.raw"
    path.write_text(
        " = A = \n \n It 's cold , isn 't it ? \n and wet . \n \n = = B = = \n \n last\n"
    )
    rows, counts = run([path], pieces, "--seq_length", "2", "--dataset_type", "wiki")
    ids = stream(pieces, ["It's cold, isn't it?\nand wet.", "last"], 2)
    assert ids_of(rows) == ids[: len(ids) // 2 * 2]
    assert (counts["headings left out"], counts["documents"]) == (2, 2)


def test_json_lines(tmp_path, pieces):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}) for text in ("one\n\ntwo", "three")]
    path.write_text("\n".join([good[0], '{"text": ""}', "{", '{"words": "x"}', "[]", good[1]]))
    rows, counts = run([path], pieces, "--seq_length", "2", "--dataset_type", "lambada")
    ids = stream(pieces, ["one\n\ntwo", "three"], 2)
    assert ids_of(rows) == ids[: len(ids) // 2 * 2]
    assert counts["rows left out, no text 'text'"] == 3
    assert counts["rows left out, no JSON"] == 1


def test_segments_are_the_documents(plain, pieces):
    rows, _ = run([plain], pieces, "--seq_length", "9", "--packing")
    lengths = [len(stream(pieces, [text], 2)) for text in DOCUMENTS]
    owners = np.repeat(np.arange(3), lengths)
    for number, row in enumerate(rows):
        mine = owners[9 * number : 9 * number + 9]
        assert row["segment_ids"].tolist() == (mine - mine[0] + 1).tolist()
    assert PRETRAIN.columns(flags("--packing")) == ("input_ids", "segment_ids")


def test_nothing_to_write(tmp_path, plain, pieces):
    count = len(stream(pieces, DOCUMENTS, 2))
    with pytest.raises(DataError, match=rf"has {count} tokens, a record needs 1,025"):
        run([plain], pieces)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="has 0 tokens"):
        run([empty], pieces)
    with pytest.raises(DataError, match="seq_length: 1 leaves no id to predict"):
        PRETRAIN.columns(flags("--seq_length", "1"))


def test_a_vocabulary_without_an_end(plain, pieces, monkeypatch):
    monkeypatch.setattr(pieces, "eos_token", None)
    with pytest.raises(DataError, match="has no eos_token to separate documents; give --eot ID"):
        run([plain], pieces)
    rows, _ = run([plain], pieces, "--eot", "5", "--seq_length", "2")
    assert 5 in ids_of(rows)
