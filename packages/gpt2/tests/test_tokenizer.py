"""GPT-2's tokenizer against ids that Hugging Face's gave, and its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outside import DATA

from lm_core.errors import TokenizerError
from lm_core.tokenizer.bpe import train_bpe
from lm_gpt2.tokenizer import END_OF_TEXT, Gpt2Tokenizer, load

VOCABULARY = DATA / "gpt2"
VECTORS = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())["cases"]
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"{VOCABULARY} is not here")


@pytest.fixture(scope="module")
def gpt2():
    return load(VOCABULARY)


@pytest.fixture
def folder(tmp_path):
    vocab, merges = train_bpe(["the water was cold, the lobster was not"] * 2, 300)
    Gpt2Tokenizer(vocab, merges).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("case", range(len(VECTORS)))
def test_ids_are_the_original_ones(gpt2, case):
    text, ids = VECTORS[case]["text"], VECTORS[case]["ids"]
    assert gpt2.encode(text) == gpt2(text)["input_ids"] == ids
    assert gpt2.decode(ids) == text


@pytest.mark.parity
@needs_vocabulary
def test_ids_with_prefix_space_are_the_original_ones():
    spaced = Gpt2Tokenizer.from_pretrained(VOCABULARY, add_prefix_space=True)
    for case in VECTORS:
        assert spaced.encode(case["text"]) == case["with_prefix_space"], case["text"]


@needs_vocabulary
def test_the_numbers_of_the_model_card(gpt2):
    assert gpt2.vocab_size == len(gpt2) == 50257
    named = gpt2.bos_token_id, gpt2.eos_token_id, gpt2.pad_token_id, gpt2.unk_token_id
    assert named == (50256,) * 4
    assert gpt2.all_special_ids == [50256]
    batch = ["I love Beijing, because", "An increasing sequence: one,"]
    got = gpt2(batch, max_length=8, padding="max_length")
    assert [sum(mask) for mask in got["attention_mask"]] == [5, 6]
    assert got["input_ids"][0][5:] == [50256] * 3
    assert gpt2.decode(got["input_ids"], skip_special_tokens=True) == batch
    assert gpt2.decode(gpt2(batch[0])["input_ids"]) == batch[0]


@needs_vocabulary
@pytest.mark.parametrize(
    "name",
    ["wikitext2/wiki.valid.tokens", "tinyshakespeare/input.txt", "adgen/dev.json"],
)
def test_corpora_come_back(gpt2, name):
    text = (DATA / name).read_text(encoding="utf-8")
    assert gpt2.decode(gpt2.encode_piece(text)) == text


@needs_vocabulary
def test_saved_and_loaded_again(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert (again.vocab, again.merges, again.special) == (gpt2.vocab, gpt2.merges, gpt2.special)
    assert json.loads((tmp_path / "vocab.json").read_text()) == gpt2.vocab
    assert (tmp_path / "merges.txt").read_bytes() == (VOCABULARY / "merges.txt").read_bytes()


def test_a_folder_without_config(folder):
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.encode(f"water{END_OF_TEXT}")[-1] == tokenizer.eos_token_id


def test_the_config_is_obeyed_and_can_be_overridden(folder):
    config = {"add_prefix_space": True, "add_bos_token": True, "add_eos_token": True}
    config |= {"pad_token": None, "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, end = load(folder), load(folder).eos_token_id
    bare = Gpt2Tokenizer.from_pretrained(
        folder, add_prefix_space=False, add_bos_token=False, add_eos_token=False
    )
    assert tokenizer.encode("water") == [end, *bare.encode(" water"), end]
    assert bare.encode("water")[0] != end
    tokenizer.save_pretrained(folder)
    assert load(folder).encode("water") == tokenizer.encode("water")


def test_special_tokens_outside_the_vocabulary(folder):
    decoder = {"310": {"content": "<pad>", "special": True}}
    config = {"pad_token": "<pad>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(folder)
    assert (tokenizer.pad_token_id, tokenizer.vocab_size) == (310, 311)
    assert tokenizer.encode("a<pad>")[-1] == 310
    tokenizer.save_pretrained(folder)
    assert load(folder).special == tokenizer.special


def test_a_vocabulary_without_its_special_token(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    del vocab[END_OF_TEXT]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(TokenizerError, match="has no id in the vocabulary") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_files_of_two_tokenizers(folder):
    with (folder / "merges.txt").open("a") as file:
        file.write("zq qz\n")
    with pytest.raises(TokenizerError, match=r"needs the token 'zq', which the vocabulary lacks"):
        load(folder)
