"""What `convert --format hf` writes, loaded by transformers: the same logits, ids and settings.

Run by `hatch run bench:transformers`; the environment of the other tests has neither it nor torch.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hugging import SPECS, TEXTS, convert, native, vocabulary
from outside import DATA

from lm_core import AutoModel, AutoTokenizer
from lm_core.cli import main
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import TOLERANCES

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SHARDS = ("--max_shard_size", "100KB")
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
CASES = {
    "gpt2": ("gpt2", {}, ()),
    "gpt2-shards": ("gpt2", {}, SHARDS),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}, SHARDS),
    "gpt2-narrow": ("gpt2", {"expand_ratio": 2, "hidden_act": "fast_gelu"}, ()),
    "gpt2-exact": ("gpt2", {"hidden_act": "gelu_exact", "layernorm_epsilon": 1e-3}, ()),
    "gpt2-float16": ("gpt2", {}, ("--dtype", "float16")),
    "gpt2-bfloat16": ("gpt2", {}, ("--dtype", "bfloat16")),
    "llama": ("llama", {}, ()),
    "llama-shards": ("llama", {}, SHARDS),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, ()),
    "llama-all-heads": ("llama", {"n_kv_heads": None}, ()),
    "llama-one-head": ("llama", {"n_kv_heads": 1}, ()),
    "llama-theta": ("llama", {"theta": 1e6, "rms_norm_eps": 1e-3}, ()),
    "llama-pi": ("llama", {"extend_method": "PI", "scaling_factor": 2.0}, ()),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, ()),
    "llama-dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ()),
    "llama-yarn": ("llama", {"rope_scaling": YARN}, ()),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3}, ()),
    "llama-padded": ("llama", {"vocab_size": 1088, "pad_token_id": 5}, ()),
    "llama-float16": ("llama", {}, ("--dtype", "float16")),
    "llama-bfloat16": ("llama", {}, ("--dtype", "bfloat16")),
}


def theirs(folder):
    """Their model in float32, with nothing missing and nothing left over, and in its own type."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    return model


def differences(folder, model=None):
    """The largest difference of logits, and whether greedy tokens of both are the same."""
    from mindspore import Tensor

    ours, other = model or AutoModel.from_pretrained(folder), theirs(folder)
    ids = tiny.token_ids(ours.config.vocab_size, (2, 50))
    with torch.no_grad():
        logits = other(torch.from_numpy(ids).long()).logits.numpy()
    rows = other.generate(torch.from_numpy(ids[:1, :9]).long(), max_new_tokens=12)
    tokens = ours.generate(ids[:1, :9], max_new_tokens=12)[0]
    assert logits.std() > 0.1
    largest = float(np.abs(ours(Tensor(ids)).asnumpy() - logits).max())
    return largest, rows[0].tolist() == tokens.tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_tokens(tmp_path, case, record_property):
    name, changes, flags = CASES[case]
    native(tmp_path / "a", name, **changes)
    folder = convert(name, tmp_path / "a", tmp_path / "b", *flags)
    kind = flags[1] if "--dtype" in flags else "float32"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{kind}"
    exact = () if kind != "float32" else (AutoModel.from_pretrained(tmp_path / "a"),)
    largest, same_tokens = differences(folder, *exact)
    record_property("largest difference of logits", largest)
    print(f"{case}: logits differ by {largest:.1e}")
    assert largest < TOLERANCES.logits and same_tokens


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_adapter_that_was_merged(tmp_path, name):
    model = adapted_model(SPECS[name])
    model.save_pretrained(tmp_path / "a")
    words = ["--load_checkpoint", str(tmp_path / "a"), "--output", str(tmp_path / "b")]
    assert main(["merge", name, *words, "--format", "hf"]) == 0
    largest, same_tokens = differences(tmp_path / "b", model)
    print(f"{name} merged: logits differ by {largest:.1e}")
    assert largest < TOLERANCES.logits and same_tokens


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_they_write_comes_back(tmp_path, name):
    """Their own `save_pretrained` of our folder, read by us."""
    native(tmp_path / "a", name)
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    theirs(folder).save_pretrained(tmp_path / "c")
    ours = AutoModel.from_pretrained(tmp_path / "a")
    largest, same_tokens = differences(tmp_path / "c", ours)
    assert largest < TOLERANCES.logits and same_tokens


SAMPLED = {"do_sample": True, "top_k": 3, "top_p": 0.8, "temperature": 0.6}


@pytest.mark.parametrize("changes", [{}, SAMPLED, {"repetition_penalty": 1.2, "num_beams": 2}])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_settings_of_generation(tmp_path, name, changes):
    config = native(tmp_path / "a", name, max_length=40, eos_token_id=[5, 7], **changes)
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    found = transformers.GenerationConfig.from_pretrained(folder)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", *changes):
        assert getattr(found, key) == getattr(config, key), key
    assert found.do_sample == config.do_sample
    found.save_pretrained(tmp_path / "c")  # refuses settings that contradict each other
    assert theirs(folder).generation_config.to_diff_dict() == found.to_diff_dict()


def same_ids(folder, texts):
    """The texts of which transformers has other ids than we, or other text of the ids."""
    ours = AutoTokenizer.from_pretrained(folder)
    other = transformers.AutoTokenizer.from_pretrained(folder)
    for name in ("bos", "eos", "unk"):
        assert getattr(other, f"{name}_token_id") == getattr(ours, f"{name}_token_id")
    assert set(other(["a"])) == {"input_ids", "attention_mask"}
    rows = other(texts)["input_ids"]
    wrong = [text for text, row in zip(texts, rows, strict=True) if row != ours.encode(text)]
    decoded = [other.decode(row, skip_special_tokens=True) for row in rows]
    again = [ours.decode(row, skip_special_tokens=True) for row in rows]
    return wrong + [text for text, a, b in zip(texts, decoded, again, strict=True) if a != b]


NAMED = ["a </s> b", "<s>x", "<unk>", "x<|endoftext|> y", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {}),
        ("gpt2", {"add_prefix_space": True}),
        ("gpt2", {"add_bos_token": True}),
        ("gpt2", {"split_special_tokens": True}),
        ("llama", {}),
        ("llama", {"infill": True}),
        ("llama", {"legacy": False}),
        ("llama", {"add_bos_token": False, "add_eos_token": True}),
    ],
    ids=str,
)
def test_ids_of_texts(tmp_path, name, settings):
    native(tmp_path / "a", name)
    vocabulary(name, tmp_path / "a", **settings)
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    assert same_ids(folder, TEXTS + NAMED) == []


@pytest.mark.parametrize(("name", "vocab_size"), [("gpt2", 50257), ("llama", 32000)])
def test_ids_of_published_vocabularies(tmp_path, name, vocab_size):
    """Llama's folder does not say that special tokens in texts are text; transformers takes them
    for special then."""
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not here")
    native(tmp_path / "a", name, vocab_size=vocab_size, hidden_size=8, num_heads=2)
    for file in (DATA / name).iterdir():
        (tmp_path / "a" / file.name).write_bytes(file.read_bytes())
    folder = convert(name, tmp_path / "a", tmp_path / "b")
    texts = TEXTS + (NAMED if name == "gpt2" else [])
    for file in ("tinyshakespeare/input.txt", "wikitext2_raw/wiki.valid.raw"):
        if (DATA / file).exists():
            texts += (DATA / file).read_text(encoding="utf-8")[:200_000].split("\n")
    assert same_ids(folder, texts) == []
