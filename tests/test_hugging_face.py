"""The files of `convert --format hf`, read without the programs they are for."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import numpy as np
import pytest
from hugging import SPECS, TEXTS, convert, native, vocabulary

from lm_core.checkpoint import hub
from lm_core.checkpoint.layout.tensors import dtype_name
from lm_core.checkpoint.tensorfile import INDEX, SafetensorsFile
from lm_core.testing import tiny
from lm_core.tokenizer.fast import files_beside
from lm_llama.tokenizer import LlamaTokenizer

WEIGHTS = {"config.json", "generation_config.json", "manifest.json", "model.safetensors"}
PIECES = {"tokenizer.model", "tokenizer_config.json"}
FILES = {
    "gpt2": WEIGHTS | {"vocab.json", "merges.txt", "tokenizer_config.json"},
    "llama": WEIGHTS | PIECES | {"tokenizer.json"},
    "glm2": WEIGHTS | PIECES,
    "baichuan2": WEIGHTS | PIECES,
    "pangualpha": WEIGHTS | {"vocab.model", "tokenizer_config.json"},
}
TOKENS = {
    "gpt2": (599, 599, 599), "llama": (1, 2, 0), "glm2": (1, 2, 0), "baichuan2": (1, 2, 0),
    "pangualpha": (None, 9, 6),
}  # fmt: skip
CODE = {
    "glm2": ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"),
    "baichuan2": ("configuration_baichuan", "modeling_baichuan", "tokenization_baichuan"),
}


def content(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SPECS)
def test_a_folder_is_complete(tmp_path, name):
    native(tmp_path / "a", name)
    vocabulary(name, tmp_path / "a")
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    assert {path.name for path in folder.iterdir()} == FILES[name]
    bos, eos, pad = TOKENS[name]
    expected = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": False}
    if name == "baichuan2":
        expected |= {"user_token_id": 195, "assistant_token_id": 196}
    given = {key: value for key, value in expected.items() if value is not None}
    assert content(folder, "generation_config.json") == given
    theirs = content(folder, "config.json")
    assert theirs["model_type"] == SPECS[name].hf_types[0]
    assert theirs["architectures"] == [next(iter(SPECS[name].config_class.architectures))]
    maps = (theirs, content(folder, "tokenizer_config.json"))
    named = [n for one in maps for n in one.get("auto_map", {}).values()]
    files = {(n if isinstance(n, str) else n[0]).partition(".")[0] for n in named}
    assert files == set(CODE.get(name, ()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_shards_hold_every_name_in_its_shape_and_type(tmp_path, name, dtype):
    config = native(tmp_path / "a", name)
    flags = ("--max_shard_size", "100KB", "--dtype", dtype)
    folder = convert(name, tmp_path / "a", tmp_path / "b", *flags)
    index, sizes = content(folder, INDEX), {}
    assert len(set(index["weight_map"].values())) > 2
    for path in folder.glob("model-*.safetensors"):
        file = SafetensorsFile(path)
        assert file.metadata == {"format": "pt"}
        assert set(file.specs) == {n for n, f in index["weight_map"].items() if f == path.name}
        assert {dtype_name(spec.dtype) for spec in file.specs.values()} == {dtype}
        sizes |= {tensor: spec.shape for tensor, spec in file.specs.items()}
    assert sizes.keys() == index["weight_map"].keys()
    width = 4 if dtype == "float32" else 2
    total = sum(int(np.prod(shape)) for shape in sizes.values())
    assert total == config.parameter_count()  # A tied head is no tensor of its own.
    assert index["metadata"]["total_size"] == width * total
    assert content(folder, "config.json").get("torch_dtype") == dtype
    back = hub.resolve(folder)
    assert back.config.parameter_count() == config.parameter_count()
    assert {dtype_name(spec.dtype) for spec in back.tensors().specs.values()} == {dtype}


SAMPLED = {"do_sample": True, "top_k": 3, "top_p": 0.8, "temperature": 0.6}


@pytest.mark.parametrize("name", SPECS)
def test_settings_of_generation_come_back(tmp_path, name):
    more = {"repetition_penalty": 1.1, "max_length": 50, "eos_token_id": [5, 7], "pad_token_id": 3}
    config = native(tmp_path / "a", name, **SAMPLED, **more)
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    written = content(folder, "generation_config.json")
    assert written.items() >= {**SAMPLED, **more}.items() and "num_beams" not in written
    back = hub.resolve(folder).config
    for key in (*SAMPLED, *more, "bos_token_id", "num_beams"):
        assert getattr(back, key) == getattr(config, key), key


def test_what_decides_nothing_is_not_said(tmp_path):
    native(tmp_path / "a", "llama", top_k=3, top_p=0.8, num_beams=2, max_decode_length=40)
    folder = convert("llama", tmp_path / "a", tmp_path / "b")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings = {"do_sample": False, "num_beams": 2, "max_length": 40}
    assert content(folder, "generation_config.json") == tokens | settings


def test_settings_that_came_with_the_weights_stay(tmp_path):
    native(tmp_path / "a", "llama")
    (tmp_path / "a" / "generation_config.json").write_text('{"top_k": 7, "theirs": 1}')
    folder = convert("llama", tmp_path / "a", tmp_path / "b")
    assert content(folder, "generation_config.json") == {"top_k": 7, "theirs": 1}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"type": "linear", "factor": 4.0}, {"factor": 4.0}),
        ({"type": "dynamic", "factor": 2.0, "beta_fast": 3.0}, {"factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            {"beta_fast": 32.0, "beta_slow": 1.0},
        ),
        (
            {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
            {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
    ],
    ids=lambda value: value.get("type", ""),
)
def test_rotations_are_described_by_what_their_kind_has(tmp_path, given, written):
    config = native(tmp_path / "a", "llama", rope_scaling=given, theta=5e5)
    theirs = content(convert("llama", tmp_path / "a", tmp_path / "b"), "config.json")
    common = {k: v for k, v in given.items() if k in ("factor", "original_max_position_embeddings")}
    assert theirs["rope_scaling"] == {"rope_type": given["type"], **common, **written}
    assert theirs["rope_theta"] == 5e5
    back = hub.resolve(tmp_path / "b").config
    assert back.rope.type == config.rope.type and back.theta == config.theta


# Llama's tokenizer.json.


def cut(described, text):
    """Ids by tokenizer.json, as the `tokenizers` library applies it, in the plainest way."""
    model, around = described["model"], described["post_processor"]
    if text:
        for step in described["normalizer"]["normalizers"]:
            start = step.get("prepend")
            old = "" if start else step["pattern"]["String"]
            text = start + text if start else text.replace(old, step["content"])
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    parts = list(text)
    while True:
        pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts))]
        rank, at = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = []
    for part in parts:
        spelt = [part] if part in model["vocab"] else [f"<0x{b:02X}>" for b in part.encode()]
        ids += [model["vocab"][one] for one in spelt]
    single = []
    for step in around["single"]:
        special = step.get("SpecialToken")
        single += around["special_tokens"][special["id"]]["ids"] if special else ids
    return single


@pytest.mark.parametrize(
    "settings",
    [{}, {"infill": True}, {"add_bos_token": False, "add_eos_token": True}, {"legacy": False}],
    ids=str,
)
def test_tokenizer_json_gives_the_ids_of_sentencepiece(tmp_path, settings):
    tokenizer = vocabulary("llama", tmp_path, **settings)
    made = files_beside(tmp_path, LlamaTokenizer)
    described, config = (json.loads(made[f"tokenizer{name}.json"]) for name in ("", "_config"))
    for text in TEXTS:
        assert cut(described, text) == tokenizer.encode(text), text
    added = {token["content"]: token["id"] for token in described["added_tokens"]}
    assert added == tokenizer.special
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["split_special_tokens"] is True
    for name, text in made.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert LlamaTokenizer.from_pretrained(tmp_path).settings() == tokenizer.settings()
    assert files_beside(tmp_path, LlamaTokenizer) == made


def test_what_the_folder_says_of_its_tokenizer_stays(tmp_path):
    native(tmp_path / "a", "llama")
    vocabulary("llama", tmp_path / "a")
    said = {"chat_template": "{{ messages }}", "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    folder = convert("llama", tmp_path / "a", tmp_path / "b")
    config = content(folder, "tokenizer_config.json")
    assert config["chat_template"] == said["chat_template"]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert content(folder, "tokenizer.json")["model"]["type"] == "BPE"


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 380}, "it does not merge pairs"),
        ({"remove_extra_whitespaces": True}, "it changes texts before it cuts them"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it changes texts before it cuts them"),
        ({"user_defined_symbols": ["<sep>"]}, "it has pieces that users defined"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_that_the_file_cannot_describe_are_told(tmp_path, caplog, trained, reason):
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model(**trained))
    with caplog.at_level(logging.WARNING):
        assert files_beside(tmp_path, LlamaTokenizer) == {}
    assert f"no tokenizer.json is written, because {reason}" in caplog.text


def test_a_damaged_vocabulary_is_one_line_and_nothing_is_written(tmp_path, capsys):
    from lm_core.cli import main

    native(tmp_path / "a", "llama")
    (tmp_path / "a" / "tokenizer.model").write_bytes(b"nothing")
    words = ["--input", str(tmp_path / "a"), "--output", str(tmp_path / "b"), "--format", "hf"]
    assert main(["convert", "llama", *words]) == 2
    assert "is no sentencepiece model" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
