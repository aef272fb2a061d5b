"""The files of a tokenizer folder, whole and damaged."""

from __future__ import annotations

import json
import re

import pytest

from lm_core.errors import TokenizerError
from lm_core.tokenizer.files import read_bpe, read_config, read_merges, read_vocab


@pytest.fixture
def folder(bpe, tmp_path):
    bpe.save_pretrained(tmp_path)
    return tmp_path


def write_tokenizer_json(folder, bpe, **changes):
    value = {
        "added_tokens": [{"id": 7, "content": "<x>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": bpe.vocab, "merges": [list(pair) for pair in bpe.merges]},
        **changes,
    }
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")


def test_saved_files_are_read_back(folder, bpe):
    (vocab, merges), added = read_bpe(folder)
    assert (vocab, merges, added) == (bpe.vocab, bpe.merges, {})


@pytest.mark.parametrize("as_text", [False, True])
def test_tokenizer_json_alone_is_enough(bpe, tmp_path, as_text):
    merges = [" ".join(pair) if as_text else list(pair) for pair in bpe.merges]
    write_tokenizer_json(tmp_path, bpe, model={"vocab": bpe.vocab, "merges": merges})
    (vocab, merges), added = read_bpe(tmp_path)
    assert (vocab, merges, added) == (bpe.vocab, bpe.merges, {"<x>": 7})


def test_vocab_and_merges_go_before_tokenizer_json(folder, bpe):
    write_tokenizer_json(folder, bpe, model={"type": "BPE", "vocab": {"a": 1}, "merges": []})
    assert read_bpe(folder)[0].vocab == bpe.vocab


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"type": "Unigram", "vocab": [], "merges": []}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
        {"normalizer": {"type": "NFC"}},
    ],
)
def test_tokenizer_json_of_another_kind(bpe, tmp_path, changes):
    write_tokenizer_json(tmp_path, bpe, **changes)
    with pytest.raises(TokenizerError, match="is no byte-level BPE of GPT-2's kind"):
        read_bpe(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["vocab.json"], "vocab.json missing"),
        (["merges.txt"], "merges.txt missing"),
        (["vocab.json", "merges.txt"], "vocab.json and merges.txt missing"),
    ],
)
def test_missing_files(folder, missing, message):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(TokenizerError, match=message):
        read_bpe(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(TokenizerError, match="is no folder"):
        read_bpe(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "vocab.json:1: is not JSON"),
        (b'{"a":\n 1,\n', "vocab.json:3: is not JSON"),
        (b"[1]", "holds a list"),
        (b"{}", "is no map of tokens to whole numbers"),
        (b'{"a": "1"}', "is no map of tokens to whole numbers"),
        (b'{"a": true}', "is no map of tokens to whole numbers"),
        (b'{"a": 1.0}', "is no map of tokens to whole numbers"),
        (b"\xff\xfe{}", "is not UTF-8 (byte 0)"),
        (b"", "is not JSON"),
    ],
)
def test_a_damaged_vocab(tmp_path, content, message):
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=re.escape(message)) as caught:
        read_vocab(tmp_path / "vocab.json")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "merges"),
    [
        ("#version: 0.2\na b\nab c\n", [("a", "b"), ("ab", "c")]),
        ("a b\nab c", [("a", "b"), ("ab", "c")]),
        ("#version: 0.2\r\na b\r\n", [("a", "b")]),
        ("#version: 0.2\n# #\n\n", [("#", "#")]),
        ("#version: 0.2\n\u0100 \u2028\n", [("\u0100", "\u2028")]),
        ("", []),
    ],
)
def test_merges(tmp_path, content, merges):
    (tmp_path / "merges.txt").write_bytes(content.encode())
    assert read_merges(tmp_path / "merges.txt") == merges


@pytest.mark.parametrize("line", ["ab", "a b c", "a  b", " a b", "a "])
def test_a_damaged_line_of_merges(tmp_path, line):
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\na b\n{line}\n")
    with pytest.raises(TokenizerError, match=r"merges.txt:3: .* is not two tokens"):
        read_merges(tmp_path / "merges.txt")


def test_config_from_several_files(tmp_path):
    def write(name, value):
        (tmp_path / name).write_text(json.dumps(value))

    assert read_config(tmp_path) == {"added_tokens": {}}
    write("special_tokens_map.json", {"eos_token": "<e>", "unk_token": {"content": "<u>"}})
    write(
        "tokenizer_config.json",
        {
            "eos_token": {"content": "<eos>", "lstrip": False},
            "pad_token": None,
            "add_prefix_space": True,
            "added_tokens_decoder": {"9": {"content": "<x>"}},
        },
    )
    write("added_tokens.json", {"<y>": 10})
    config = read_config(tmp_path)
    assert (config["eos_token"], config["unk_token"], config["pad_token"]) == ("<eos>", "<u>", None)
    assert config["add_prefix_space"] is True
    assert config["added_tokens"] == {"<x>": 9, "<y>": 10}


@pytest.mark.parametrize(
    "value",
    [{"eos_token": 5}, {"eos_token": {"text": "x"}}, {"added_tokens_decoder": {"x": "<a>"}}],
)
def test_a_config_with_a_wrong_token(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(value))
    with pytest.raises(TokenizerError, match="a special token is neither a text nor an object"):
        read_config(tmp_path)
