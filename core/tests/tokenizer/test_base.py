"""Batches, padding, truncation and decoding, on a tokenizer of one id per character."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import Tokenizer

SPECIAL = {"<s>": 200, "</s>": 201, "<pad>": 202}


class Letters(Tokenizer):
    """An ASCII character is its code."""

    vocab_size = 203

    def _encode(self, text):
        return map(ord, text)

    def _bytes(self, ids, after):
        return bytes(ids)

    def _id(self, token):
        return ord(token) if len(token) == 1 and ord(token) < 128 else None

    def _token(self, index):
        return chr(index) if 0 <= index < 128 else None

    def _files(self):
        return {"letters.txt": "abc"}


@pytest.fixture
def plain():
    return Letters(SPECIAL, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def wrapping():
    return Letters(
        SPECIAL,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        add_eos_token=True,
    )


def ids(text):
    return [ord(letter) for letter in text]


def test_one_text_gives_flat_lists(plain):
    assert plain("ab") == {"input_ids": ids("ab"), "attention_mask": [1, 1]}
    assert plain(["ab"]) == {"input_ids": [ids("ab")], "attention_mask": [[1, 1]]}
    assert plain([]) == {"input_ids": [], "attention_mask": []}
    assert plain("") == {"input_ids": [], "attention_mask": []}
    assert plain(("ab", "c"))["input_ids"] == [ids("ab"), ids("c")]
    assert list(plain("ab", return_attention_mask=False)) == ["input_ids"]


@pytest.mark.parametrize("padding", [True, "longest"])
def test_padding_to_the_longest(plain, padding):
    got = plain(["abc", "a", ""], padding=padding)
    assert got["input_ids"] == [ids("abc"), [97, 202, 202], [202] * 3]
    assert got["attention_mask"] == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert plain(["abc", "a"], max_length=9, padding=padding)["input_ids"][1] == [97, 202, 202]


def test_padding_to_max_length_does_not_shorten(plain):
    got = plain(["abcde", "a"], max_length=3, padding="max_length")
    assert got["input_ids"] == [ids("abcde"), [97, 202, 202]]
    assert plain("a", max_length=3, padding="max_length")["attention_mask"] == [1, 0, 0]
    cut = plain(["abcde", "a"], max_length=3, padding="max_length", truncation=True)
    assert cut["input_ids"] == [ids("abc"), [97, 202, 202]]


def test_padding_on_the_left(plain):
    plain.padding_side = "left"
    got = plain(["abc", "a"], padding=True)
    assert got["input_ids"][1] == [202, 202, 97]
    assert got["attention_mask"][1] == [0, 0, 1]


def test_max_length_alone_shortens(plain):
    assert plain("abcde", max_length=2)["input_ids"] == ids("ab")
    assert plain("abcde", max_length=2, truncation=False)["input_ids"] == ids("abcde")
    assert plain("abcde", 0)["input_ids"] == []
    plain.truncation_side = "left"
    assert plain("abcde", max_length=2)["input_ids"] == ids("de")
    assert plain("abcde", max_length=0)["input_ids"] == []


def test_tokens_around_a_text(wrapping):
    assert wrapping.encode("ab") == [200, 97, 98, 201]
    assert wrapping.encode("ab", add_special_tokens=False) == ids("ab")
    assert wrapping("abcdef", max_length=4)["input_ids"] == [200, 97, 98, 201]
    assert wrapping("abcdef", max_length=2)["input_ids"] == [200, 201]
    assert wrapping("", padding="max_length", max_length=3)["input_ids"] == [200, 201, 202]
    with pytest.raises(TokenizerError, match="max_length: 1 has no room"):
        wrapping("abc", max_length=1)


def test_arrays(plain):
    got = plain(["abc", "a"], padding=True, return_tensors="np")
    assert got["input_ids"].dtype == got["attention_mask"].dtype == np.int32
    assert got["input_ids"].tolist() == [ids("abc"), [97, 202, 202]]
    assert plain("abc", return_tensors="np")["input_ids"].shape == (1, 3)
    assert plain("", return_tensors="np")["input_ids"].shape == (1, 0)
    with pytest.raises(TokenizerError, match="rows have lengths 1, 3; use padding=True"):
        plain(["abc", "a"], return_tensors="np")
    with pytest.raises(TokenizerError, match="'pt' is none of"):
        plain("abc", return_tensors="pt")


def test_mindspore_tensors(plain):
    import mindspore

    got = plain(["abc", "a"], padding=True, return_tensors="ms")
    assert got["input_ids"].dtype == mindspore.int32
    assert got["attention_mask"].asnumpy().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert plain.decode(got["input_ids"], skip_special_tokens=True) == ["abc", "a"]
    assert plain.decode(got["input_ids"][0]) == "abc"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "max_length"}, 'padding: "max_length" needs a max_length'),
        ({"padding": "widest"}, "padding: 'widest' is none of"),
        ({"truncation": "widest", "max_length": 1}, "truncation: 'widest' is none of"),
        ({"truncation": True}, "truncation: needs a max_length"),
        ({"max_length": -1}, "max_length: -1 is negative"),
    ],
)
def test_impossible_requests(plain, arguments, message):
    with pytest.raises(TokenizerError, match=message):
        plain("abc", **arguments)


@pytest.mark.parametrize("text", [None, 5, b"abc", ["a", None], [["a"]]])
def test_things_that_are_no_text(plain, text):
    with pytest.raises((TokenizerError, TypeError)):
        plain(text)
    with pytest.raises(TokenizerError, match="a text or a list of texts is needed"):
        plain.encode(text)


def test_padding_needs_a_pad_token(plain):
    plain.pad_token = None
    assert plain.pad_token_id is None
    with pytest.raises(TokenizerError, match="no pad_token"):
        plain(["abc", "a"], padding=True)
    plain.pad_token = plain.eos_token
    assert plain(["abc", "a"], padding=True)["input_ids"][1] == [97, 201, 201]
    plain.pad_token = "z"
    assert plain(["abc", "a"], padding=True)["input_ids"][1] == [97, 122, 122]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (97, "a"),
        (np.int32(97), "a"),
        ([97, 98], "ab"),
        ((97, 98), "ab"),
        (np.array([97, 98]), "ab"),
        ([], ""),
        (np.zeros(0, np.int32), ""),
        ([[97], [98, 99], []], ["a", "bc", ""]),
        ([np.array([97]), np.array([98, 99])], ["a", "bc"]),
        (np.array([[97, 98]]), ["ab"]),
        ([np.int64(97), np.int64(98)], "ab"),
    ],
)
def test_decoding_takes_any_rows(plain, rows, text):
    assert plain.decode(rows) == text


def test_a_model_may_show_no_special_tokens_unasked_and_begin_texts_with_several():
    class Quiet(Letters):
        _skips_special = True
        prefix_ids = (200, 201)

    quiet = Quiet(SPECIAL, eos_token="</s>", add_eos_token=True)
    assert quiet.encode("ab") == [200, 201, 97, 98, 201]
    assert quiet("abc", max_length=4)["input_ids"] == [200, 201, 97, 201]
    row = quiet.encode("ab")
    assert quiet.decode(row) == quiet.batch_decode([row])[0] == "ab"
    assert quiet.decode(row, skip_special_tokens=False) == "<s></s>ab</s>"


def test_decoding_special_and_unknown_ids(plain):
    row = [200, 97, 201, 98, 202, 150, 9999]
    assert plain.decode(row) == "<s>a</s>b<pad>\ufffd\ufffd"
    assert plain.decode(row, skip_special_tokens=True) == "ab\ufffd\ufffd"
    assert plain.batch_decode([row, [97]], skip_special_tokens=True) == ["ab\ufffd\ufffd", "a"]
    for wrong in (-100, [97, -1], [1.5], ["a"]):
        with pytest.raises(TokenizerError, match="is not a token id"):
            plain.decode(wrong)


def test_tokens_and_ids(plain):
    assert plain.convert_tokens_to_ids("</s>") == 201
    assert plain.convert_tokens_to_ids(["a", "<s>", "\u4f60"]) == [97, 200, None]
    plain.unk_token = "<s>"
    assert plain.convert_tokens_to_ids("\u4f60") == 200
    assert plain.convert_ids_to_tokens([97, 201, 190]) == ["a", "</s>", None]
    assert plain.tokenize("a</s>b") == ["a", "</s>", "b"]
    assert plain.all_special_ids == [200, 201, 202]
    assert len(plain) == 203


def test_special_tokens_in_a_text(plain):
    assert plain.encode("a</s>b") == [97, 201, 98]
    assert plain.encode("a</s>", split_special_tokens=True) == ids("a</s>")
    plain.split_special_tokens = True
    assert plain("a</s>")["input_ids"] == ids("a</s>")
    assert plain("a</s>", split_special_tokens=False)["input_ids"] == [97, 201]


def test_a_named_token_needs_an_id():
    with pytest.raises(TokenizerError, match="eos_token: '<end>' has no id in the vocabulary"):
        Letters(SPECIAL, eos_token="<end>")


def test_saving(plain, tmp_path):
    written = plain.save_pretrained(tmp_path / "a" / "b")
    assert sorted(path.name for path in written) == ["letters.txt", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "letters.txt",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "a" / "b" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"
    assert config["unk_token"] is None
    assert config["add_bos_token"] is False
