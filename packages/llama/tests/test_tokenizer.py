"""Llama's tokenizer against ids that others gave, its folder, and the prompts of infilling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from outside import DATA
from sentencepiece import SentencePieceProcessor

from lm_core import AutoTokenizer
from lm_core import spec as registry
from lm_core.config.model import ModelConfig
from lm_core.errors import ConfigError, TokenizerError
from lm_core.generation.streamer import TextPieces
from lm_core.testing import tiny
from lm_core.tokenizer.sentencepiece import SPACE
from lm_core.tokenizer.sentencepiece_model import with_pieces
from lm_llama import SPEC
from lm_llama.tokenizer import LlamaTokenizer, load

VOCABULARY = DATA / "llama"
VECTORS = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())
CASES, INFILL = VECTORS["cases"], VECTORS["infill"]
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"{VOCABULARY} is not here")


@pytest.fixture(scope="module")
def llama():
    return load(VOCABULARY)


@pytest.fixture(scope="module")
def library():
    return SentencePieceProcessor(model_file=str(VOCABULARY / "tokenizer.model"))


@pytest.fixture(scope="module")
def code():
    return LlamaTokenizer(tiny.sentencepiece_model(infill=True))


@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ids_are_the_original_ones(llama, library, case):
    text, ids = CASES[case]["text"], CASES[case]["ids"]
    assert llama.encode(text) == llama(text)["input_ids"] == [1, *library.encode(text)] == ids
    plain = text.replace(SPACE, " ")  # which is how the vocabulary spells a space
    assert llama.decode(ids, skip_special_tokens=True) == library.decode(ids) == plain
    assert llama.decode(ids) == f"<s>{plain}"
    pieces = TextPieces(llama)
    assert "".join(pieces.push([index]) for index in ids) + pieces.flush() == plain


@pytest.mark.parity
@needs_vocabulary
def test_text_within_another_is_encoded_as_metas_code_does(llama, library):
    smile = "\N{WHITE SMILING FACE}"  # alone it is 2 tokens, a space and itself
    for case in CASES:
        text = case["text"]
        assert llama.encode_within(text) == library.encode(smile + text)[2:], text
        assert llama.decode_within(llama.encode_within(text)) == text.replace(SPACE, " ")


@needs_vocabulary
def test_the_numbers_of_the_vocabulary(llama):
    assert llama.vocab_size == len(llama) == 32000
    assert (llama.bos_token_id, llama.eos_token_id, llama.unk_token_id) == (1, 2, 0)
    assert (llama.pad_token, llama.pad_token_id) == ("<unk>", 0)
    assert llama.all_special_ids == [0, 1, 2]
    assert (llama.add_bos_token, llama.add_eos_token) == (True, False)
    got = llama(["I love Beijing, because", "LLaMa is a"], padding=True, return_tensors="np")
    assert got["input_ids"][0, 0] == got["input_ids"][1, 0] == 1
    assert (got["input_ids"] == 0).sum() == (got["attention_mask"] == 0).sum() > 0


@needs_vocabulary
def test_special_tokens_in_text_are_parsed_only_if_asked(llama):
    text = "<s>[INST] a </s>"
    assert {0, 1, 2}.isdisjoint(llama.encode(text)[1:])
    parsed = llama.encode(text, split_special_tokens=False)
    assert parsed[:2] == [1, 1]
    assert parsed[-1] == 2
    assert llama.decode(parsed) == f"<s>{text}"


@needs_vocabulary
@pytest.mark.parametrize(
    "name", ["wikitext2/wiki.valid.tokens", "tinyshakespeare/input.txt", "adgen/dev.json"]
)
def test_corpora_come_back(llama, library, name):
    text = (DATA / name).read_text(encoding="utf-8")
    ids = llama.encode_piece(text).tolist()
    assert ids == library.encode(text)
    assert llama.decode(ids) == text


@needs_vocabulary
def test_saved_and_loaded_again(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == llama.model
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, LlamaTokenizer)
    assert vars(again).keys() >= {"model", "special"}
    assert (again.special, again.pad_token, again.add_bos_token) == (llama.special, "<unk>", True)


@needs_vocabulary
def test_this_vocabulary_cannot_fill_in(llama):
    assert llama.infill_end_id is None
    with pytest.raises(TokenizerError, match="infill: this vocabulary of 32000 has no tokens for"):
        llama.build_infill_prompt("a", "b")


@pytest.mark.parity
@pytest.mark.parametrize("case", range(len(INFILL)))
def test_prompts_of_infilling_are_the_original_ones(code, case):
    given = dict(INFILL[case])
    ids = given.pop("ids")
    assert code.build_infill_prompt(**given) == ids


def test_the_parts_of_a_prompt(code):
    before, after, middle, end = (
        code.convert_tokens_to_ids(f"{SPACE}<{name}>") for name in ("PRE", "SUF", "MID", "EOT")
    )
    assert code.infill_end_id == end == code.vocab_size - 1
    first, last = code.encode("the red")[1:], code.encode_within("fox")
    assert code.build_infill_prompt("the red", "fox") == [1, before, *first, after, *last, middle]
    assert code.build_infill_prompt("the red", "fox", suffix_first=True) == (
        [1, before, after, *last, middle, *first]
    )
    assert code.build_infill_prompt("", "") == [1, before, after, middle]


def test_a_prompt_reads_as_prefix_and_suffix(code):
    ids = code.build_infill_prompt("  the red", "fox ")
    assert code.decode(ids, skip_special_tokens=True) == "  the redfox "


def test_infilling_tokens_in_text_are_text(code):
    special = set(code.all_special_ids)
    text = "<PRE> a <SUF>b <MID> <EOT><EOT>"
    assert special.isdisjoint(code.encode(text)[1:])
    ids = code.build_infill_prompt(text, text)
    assert sum(index in special for index in ids) == 4
    assert code.decode(code.encode(text), skip_special_tokens=True) == text


def test_an_answer_ends_at_its_token(code):
    end, answer = code.infill_end_id, code.encode_within("  quick fox ")
    assert code.decode_infill([*answer, end, *answer]) == "  quick fox "
    assert code.decode_infill([*answer, code.eos_token_id]) == "  quick fox "
    assert code.decode_infill([]) == ""
    prompt = code.build_infill_prompt("the", "end")
    pieces = TextPieces(code)
    pieces.push(prompt)
    shown = "".join(pieces.push([index]) for index in [*answer, end])
    assert shown == "  quick fox "


def test_some_of_the_four_tokens_are_none():
    three = [(f"{SPACE}<{name}>", -1e4) for name in ("PRE", "SUF", "MID")]
    tokenizer = LlamaTokenizer(with_pieces(tiny.sentencepiece_model(), three))
    assert tokenizer.infill_end_id is None
    assert tokenizer.all_special_ids == [0, 1, 2]


@pytest.mark.parametrize(
    "kind",
    ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"],
)
def test_a_folder_of_any_of_the_original_classes(tmp_path, kind):
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model(infill=True))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, LlamaTokenizer)
    assert tokenizer.encode("")[0] == 1
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "CodeLlamaTokenizer"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.special, again.infill_end_id) == (tokenizer.special, tokenizer.infill_end_id)


def test_a_folder_with_a_model_configuration_alone(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), LlamaTokenizer)


def test_a_folder_with_nothing_but_the_vocabulary(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    for family in ("llama", "llama2_7b", SPEC.presets["llama_tiny"]):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, family=family)
        assert isinstance(tokenizer, LlamaTokenizer)
        assert (tokenizer.add_bos_token, tokenizer.pad_token_id) == (True, 0)
        assert tokenizer.legacy
    with pytest.raises(ConfigError, match="no installed package knows 'lama'"):
        AutoTokenizer.from_pretrained(tmp_path, family="lama")


def test_whose_a_vocabulary_is_is_not_guessed(tmp_path, monkeypatch):
    """One package that reads it will do; where there are two, their ids would differ."""
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    both = {"llama": SPEC, "other": replace(SPEC, name="other", config_class=ModelConfig)}
    monkeypatch.setattr(registry, "installed", lambda: {"llama": SPEC})
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), LlamaTokenizer)
    monkeypatch.setattr(registry, "installed", lambda: both)
    with pytest.raises(TokenizerError, match="holds a vocabulary of llama or other; must") as e:
        AutoTokenizer.from_pretrained(tmp_path)
    assert len(e.value.problems) == 1 and 'family="llama"' in str(e.value)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(TokenizerError, match="is no sentencepiece model"):
        AutoTokenizer.from_pretrained(tmp_path)
