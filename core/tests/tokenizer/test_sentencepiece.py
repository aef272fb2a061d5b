"""Sentencepiece tokenizers against the library itself, and their folder."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from sentencepiece import SentencePieceProcessor

from lm_core.errors import TokenizerError
from lm_core.generation.streamer import TextPieces
from lm_core.testing import tiny
from lm_core.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from lm_core.tokenizer.sentencepiece_model import with_controls, with_pieces, without_prefix

TEXTS = [
    "", " ", "  ", "\n", "\t x", "The red fox", " The", "   three  spaces   ", "a\nb\n\n", "a\0b",
    "\x01\x7f", "你好，世界", "e\u0301 é", "\U0001f600\U0001f469\u200d\U0001f4bb", "<s>",
    "</s> <s>a", "<unk>", "<0x41>", "\ufffd", "x" * 300, "the old clock " * 200,
]  # fmt: skip
BOS, EOS, UNK = 1, 2, 0


@pytest.fixture(scope="module")
def model():
    return tiny.sentencepiece_model()


@pytest.fixture(scope="module")
def library(model):
    return SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def tokenizer(model):
    return SentencePieceTokenizer(model)


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_the_library(tokenizer, library, text):
    ids = library.encode(text)
    assert tokenizer.encode(text) == tokenizer.encode_piece(text).tolist() == ids
    assert tokenizer.decode(ids) == library.decode(ids) == text
    assert tokenizer.tokenize(text) == library.id_to_piece(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_text_within_another_has_no_implied_space(tokenizer, library, text):
    # No piece holds a character before U+2581, so this cut is one that the library makes, too.
    before, whole = library.encode("."), library.encode("." + text)
    assert whole[: len(before)] == before
    assert tokenizer.encode_within(text) == whole[len(before) :]
    assert tokenizer.decode_within(whole[len(before) :]) == text


def test_named_tokens_come_from_the_model(tokenizer):
    named = tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token
    assert named == ("<s>", "</s>", "<unk>", None)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.all_special_ids == [UNK, BOS, EOS]
    assert tokenizer.vocab_size == len(tokenizer) == 460
    assert tokenizer.convert_tokens_to_ids(["</s>", f"{SPACE}fox", "no such piece"])[::2] == [2, 0]
    assert tokenizer.convert_ids_to_tokens([1, 460]) == ["<s>", None]


def test_special_tokens_in_text_are_parsed_only_if_asked(tokenizer):
    text = "<s>fox</s>"
    assert not {UNK, BOS, EOS} & set(tokenizer.encode(text))
    parsed = tokenizer.encode(text, split_special_tokens=False)
    assert parsed == [BOS, *tokenizer.encode("fox"), EOS]
    assert tokenizer.decode(parsed) == text
    assert tokenizer.decode(parsed, skip_special_tokens=True) == "fox"


def test_what_follows_a_parsed_token(model):
    text = "fox</s>fox"
    old, new = (SentencePieceTokenizer(model, legacy=legacy) for legacy in (True, False))
    first = old.encode("fox")
    assert old.encode(text, split_special_tokens=False) == [*first, EOS, *first]
    within = new.encode_within("fox")
    assert within != first
    assert new.encode(text, split_special_tokens=False) == [*first, EOS, *within]
    for one in (text, "fox</s> fox", "<s> fox</s><s>fox", "</s>fox"):
        assert old.decode(old.encode(one, split_special_tokens=False)) == one
    # Behind the first <s> a space is implied, whoever wrote it.
    for one in (text, "fox</s> fox", "fox</s><s>fox", "</s>fox"):
        assert new.decode(new.encode(one, split_special_tokens=False)) == one
    assert new.decode([BOS, *first]) == "<s>fox"


def test_tokens_around_a_text_and_padding(model):
    tokenizer = SentencePieceTokenizer(
        model, add_bos_token=True, add_eos_token=True, pad_token="<unk>"
    )
    fox = tokenizer.encode("fox", add_special_tokens=False)
    assert tokenizer.encode("fox") == [BOS, *fox, EOS]
    got = tokenizer(["fox", "fox fox"], padding=True)
    assert got["input_ids"][0] == [BOS, *fox, EOS] + [UNK] * sum(
        mask == 0 for mask in got["attention_mask"][0]
    )
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    assert tokenizer("fox", padding="max_length", max_length=9)["input_ids"][-2:] == [fox[-1], EOS]
    assert tokenizer("fox", max_length=3)["input_ids"] == [BOS, fox[-1], EOS]
    assert tokenizer.decode(got["input_ids"], skip_special_tokens=True) == ["fox", "fox fox"]


def test_added_tokens_behind_the_vocabulary(model, tmp_path):
    tokenizer = SentencePieceTokenizer(model, special={"<pad>": 470}, pad_token="<pad>")
    assert (tokenizer.pad_token_id, tokenizer.vocab_size) == (470, 471)
    assert tokenizer.encode("a<pad>", split_special_tokens=False)[-1] == 470
    assert 470 not in tokenizer.encode("a<pad>")
    assert tokenizer.decode([470]) == "<pad>"
    tokenizer.save_pretrained(tmp_path)
    again = SentencePieceTokenizer.from_pretrained(tmp_path)
    assert (again.special, again.pad_token_id) == (tokenizer.special, 470)


def test_ids_beyond_the_vocabulary_are_nothing(tokenizer):
    fox = tokenizer.encode("fox")
    assert tokenizer.decode([*fox, 460, 10**9]) == "fox"
    assert tokenizer.decode([460]) == tokenizer.decode_within([460]) == ""
    assert tokenizer.decode([460, *tokenizer.encode_within(" a")]) == " a"
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        tokenizer.decode([-1])


def test_a_character_of_several_tokens_comes_whole(tokenizer):
    text = " 你好 \U0001f600 the red fox \U0001f469\u200d\U0001f4bb é " * 12
    pieces = TextPieces(tokenizer)
    shown = [pieces.push([index]) for index in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) + pieces.flush() == text
    assert tokenizer.decode(tokenizer.encode("你")[:-1]).endswith("\ufffd")


def test_special_pieces_that_are_ordinary_for_the_library():
    marked = with_pieces(tiny.sentencepiece_model(infill=True), [("never", -1.0)])
    raw, prefix = SentencePieceProcessor(model_proto=marked), f"{SPACE}<PRE>"
    index = raw.piece_to_id(prefix)
    assert raw.encode("<PRE>") == [index]
    tokenizer = SentencePieceTokenizer(marked, special={prefix: index})
    assert index not in tokenizer.encode("<PRE> <PRE>")
    assert tokenizer.decode(tokenizer.encode("<PRE> <PRE>")) == "<PRE> <PRE>"
    assert tokenizer.encode("a" + prefix, split_special_tokens=False)[-1] == index
    assert raw.id_to_piece(raw.get_piece_size() - 1) == "never"


def test_changes_to_the_bytes_change_nothing_else(model, library):
    changed = SentencePieceProcessor(model_proto=with_controls(without_prefix(model), [300, 459]))
    every = list(range(library.get_piece_size()))
    assert changed.id_to_piece(every) == library.id_to_piece(every)
    assert changed.get_score(every) == library.get_score(every)
    assert [index for index in every if changed.is_control(index)] == [BOS, EOS, 300, 459]
    assert with_controls(model, []) == model


def test_saved_loaded_and_sent_to_another_process(tokenizer, folder, model):
    assert (folder / "tokenizer.model").read_bytes() == model
    again = SentencePieceTokenizer.from_pretrained(folder)
    sent = pickle.loads(pickle.dumps(tokenizer))
    for other in (again, sent):
        assert other.special == tokenizer.special
        assert other.encode("the red fox") == tokenizer.encode("the red fox")
        assert other.decode(other.encode(" 你")) == " 你"


def test_the_config_is_obeyed_and_can_be_overridden(folder):
    config = {"add_bos_token": True, "legacy": False, "split_special_tokens": False}
    config |= {"bos_token": {"content": "<s>"}, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = SentencePieceTokenizer.from_pretrained(folder)
    assert (tokenizer.add_bos_token, tokenizer.legacy) == (True, False)
    assert tokenizer.encode("</s>") == [BOS, EOS]
    bare = SentencePieceTokenizer.from_pretrained(folder, add_bos_token=False, legacy=True)
    assert (bare.add_bos_token, bare.legacy) == (False, True)


def test_the_model_under_another_name(folder):
    (folder / "tokenizer.model").rename(folder / "vocab.model")
    tokenizer = SentencePieceTokenizer.from_pretrained(folder)
    assert SentencePieceTokenizer.from_pretrained(folder / "vocab.model").encode("fox") == (
        tokenizer.encode("fox")
    )
    (folder / "other.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"holds other.model, vocab.model; must be one"):
        SentencePieceTokenizer.from_pretrained(folder)


def test_no_folder_no_model(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: is no folder; name one that holds"):
        SentencePieceTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"tokenizer.model missing; must be"):
        SentencePieceTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"missing \(tokenizer.json alone does not do\)"):
        SentencePieceTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 500, -1])
def test_a_damaged_model(folder, model, kept):
    (folder / "tokenizer.model").write_bytes(model[:kept])
    with pytest.raises(TokenizerError, match="is no sentencepiece model; the file is damaged") as e:
        SentencePieceTokenizer.from_pretrained(folder)
    assert str(folder / "tokenizer.model") in str(e.value)


def test_a_named_token_without_id(folder):
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<nothing>"}')
    with pytest.raises(TokenizerError, match="pad_token: '<nothing>' has no id in the vocabulary"):
        SentencePieceTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("index", ["470", -1, 4.5, None, True])
def test_an_added_token_with_a_wrong_id(folder, index):
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": index}))
    with pytest.raises(TokenizerError, match=f"the id of the added token '<pad>' is {index!r}; m"):
        SentencePieceTokenizer.from_pretrained(folder)


def test_it_cannot_fill_in(tokenizer):
    assert tokenizer.infill_end_id is None
    with pytest.raises(TokenizerError, match="infill: this tokenizer has no tokens for infilling"):
        tokenizer.build_infill_prompt("a", "b")


def test_importing_is_cheap():
    code = (
        "import sys, lm_core.tokenizer.sentencepiece; "
        "assert not {'sentencepiece', 'mindspore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
