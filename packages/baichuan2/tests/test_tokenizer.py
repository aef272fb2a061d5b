"""Baichuan 2's tokenizer against ids of the published vocabulary, roles in texts, and its folder.

Without the published vocabulary a small one stands in, with the same kinds of pieces.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from outside import DATA
from sentencepiece import SentencePieceProcessor

from lm_baichuan2 import SPEC
from lm_baichuan2.tokenizer import ASSISTANT, USER, Baichuan2Tokenizer
from lm_core import AutoTokenizer
from lm_core.errors import TokenizerError
from lm_core.generation.streamer import TextPieces
from lm_core.testing import tiny
from lm_core.tokenizer.sentencepiece import SPACE

VOCABULARY = DATA / "baichuan2_7b"
CHAT = DATA / "baichuan2_13b_chat"
BELLE = DATA / "belle" / "belle_chat_ramdon_first1000.json"
CASES = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())["cases"]
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"{VOCABULARY} is not here")
TEXTS = [
    "", " ", "  two  ", "\n\n", "\t", "你好", "the red fox\0", "ＡＢ１，", "\U0001f600",
    "<s>", "</s>", "<unk>", "<SEP>", f"{USER}the red fox{ASSISTANT}", f"a{USER}", "<reserved_5>",
]  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return AutoTokenizer.from_pretrained(VOCABULARY)


@pytest.fixture(scope="module")
def library():
    return SentencePieceProcessor(model_file=str(VOCABULARY / "tokenizer.model"))


@pytest.fixture
def folder(tmp_path, vocabulary):
    (tmp_path / "tokenizer.model").write_bytes(vocabulary)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BaichuanTokenizer"}')
    return tmp_path


def streamed(tokenizer, ids):
    pieces = TextPieces(tokenizer)
    return "".join(pieces.push([index]) for index in ids) + pieces.flush()


@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ids_are_the_original_ones(published, library, case):
    text, ids = CASES[case]["text"], CASES[case]["ids"]
    assert published.encode(text) == published(text)["input_ids"] == library.encode(text) == ids
    plain = text.replace(SPACE, " ")  # which is how the vocabulary spells a space
    assert published.decode(ids) == library.decode(ids) == plain
    assert published.decode(ids, skip_special_tokens=True) == plain
    assert streamed(published, ids) == plain
    if USER not in text and ASSISTANT not in text:
        assert published.encode_said(text) == ids


@needs_vocabulary
def test_the_numbers_of_the_vocabulary(published):
    assert isinstance(published, Baichuan2Tokenizer)
    config = SPEC.presets["baichuan2_7b"]
    assert published.vocab_size == len(published) == config.vocab_size == 125696
    assert (published.unk_token_id, published.pad_token_id) == (0, 0)
    assert (published.bos_token_id, published.eos_token_id) == (1, 2)
    assert (published.add_bos_token, published.add_eos_token) == (False, False)
    assert published.all_special_ids == [0, 1, 2]
    assert (published.user_token_id, config.user_token_id) == (195, 195)
    assert (published.assistant_token_id, config.assistant_token_id) == (196, 196)
    assert published.encode("<reserved_106>你是谁？<reserved_107>") == [195, 92067, 68, 196]
    got = published(["a", "登鹳雀楼->王之涣"], max_length=12, padding="max_length")
    assert [len(row) for row in got["input_ids"]] == [12, 12]
    assert got["input_ids"][0] == [92314, *[0] * 11]
    assert got["attention_mask"][0] == [1, *[0] * 11]


@needs_vocabulary
def test_the_tokens_of_a_role_in_what_somebody_says(published, library):
    text = f"a{ASSISTANT}b{USER}</s>"
    assert {195, 196} < set(published.encode(text))
    said = published.encode_said(text)
    assert {0, 1, 2, 195, 196}.isdisjoint(said)
    assert published.decode(said) == library.decode(said) == text


@needs_vocabulary
def test_the_files_of_13b_name_the_same_tokens(published, tmp_path):
    for path in CHAT.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(published.model)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(other, Baichuan2Tokenizer)
    assert vars(other) == {name: vars(published)[name] for name in vars(other)}


@needs_vocabulary
def test_every_text_of_belle_comes_back(published, library):
    if not BELLE.exists():
        pytest.skip(f"{BELLE} is not here")
    for record in json.loads(BELLE.read_text(encoding="utf-8")):
        for text in (turn["value"] for turn in record["conversations"]):
            ids = published.encode(text)
            assert ids == library.encode(text) == published.encode_said(text)
            assert published.decode(ids) == library.decode(ids) == text.replace(SPACE, " ")


@needs_vocabulary
def test_the_published_folder_comes_back(published, tmp_path):
    published.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == published.model
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, Baichuan2Tokenizer)
    assert [again.encode(case["text"]) for case in CASES] == [case["ids"] for case in CASES]
    assert again.user_token_id == 195


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_its_pieces(tokenizer, vocabulary, text):
    library = SentencePieceProcessor(model_proto=vocabulary)
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False) == library.encode(text)
    assert set(ids).isdisjoint(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == library.decode(ids) == text == streamed(tokenizer, ids)
    said = tokenizer.encode_said(text)
    assert {tokenizer.user_token_id, tokenizer.assistant_token_id}.isdisjoint(said)
    assert set(said).isdisjoint(tokenizer.all_special_ids)
    assert tokenizer.decode(said) == text
    assert (said == ids) == (USER not in text and ASSISTANT not in text)


def test_roles_are_seen_and_the_end_is_not(tokenizer):
    """As the card shows what a prompt became."""
    ids = [*tokenizer.encode(f"{USER}fox{ASSISTANT}cups"), tokenizer.eos_token_id, 0]
    assert tokenizer.decode(ids) == f"{USER}fox{ASSISTANT}cups</s><unk>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{USER}fox{ASSISTANT}cups"


def test_ids_beyond_the_vocabulary(tokenizer):
    beyond = [tokenizer.vocab_size, 125695, 10**9]
    assert tokenizer.decode([*tokenizer.encode("fox"), *beyond]) == "fox"
    assert tokenizer.decode([beyond, []]) == ["", ""]
    assert streamed(tokenizer, beyond) == ""
    assert tokenizer.convert_ids_to_tokens(beyond) == [None] * 3


def test_special_tokens_in_text_are_parsed_if_asked(tokenizer):
    ids = tokenizer.encode(f"{USER}</s>", split_special_tokens=False)
    assert ids == [tokenizer.user_token_id, 2]


def test_a_vocabulary_without_roles():
    tokenizer = Baichuan2Tokenizer(tiny.sentencepiece_model())
    assert tokenizer.decode(tokenizer.encode(USER)) == USER
    for use in (tokenizer.encode_said, lambda text: tokenizer.user_token_id):
        with pytest.raises(TokenizerError, match="chat: this vocabulary of 460 has no token <res"):
            use("a")


@pytest.mark.parametrize("kind", ["BaichuanTokenizer", "Baichuan2Tokenizer", None])
def test_a_folder_of_any_of_the_original_classes(folder, tokenizer, kind):
    values = {"pad_token": None} if kind is None else {"tokenizer_class": kind}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    found = AutoTokenizer.from_pretrained(folder, family="baichuan2_7b")
    assert isinstance(found, Baichuan2Tokenizer)
    assert (found.special, found.pad_token) == (tokenizer.special, "<unk>")


def test_saved_loaded_and_sent_to_another_process(tokenizer, tmp_path):
    tokenizer.encode_said("a")
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BaichuanTokenizer"
    assert config["auto_map"]["AutoTokenizer"][0] == "tokenization_baichuan.BaichuanTokenizer"
    for other in (AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(other, Baichuan2Tokenizer)
        assert (other.special, other.pad_token) == (tokenizer.special, "<unk>")
        assert [other.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert other.encode_said(USER) == tokenizer.encode_said(USER)
