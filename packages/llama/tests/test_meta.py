"""Llama as Meta publishes it: read, computed, written, and what is wrong told in a line."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm_core import AutoConfig, AutoModel
from lm_core.checkpoint import ckpt, hub, io, ranks
from lm_core.checkpoint.layout import Cast, Memory, stream
from lm_core.cli import main
from lm_core.config.flags import add_run_arguments, resolve_run
from lm_core.errors import CheckpointError, ConfigError
from lm_core.testing import parts, tiny
from lm_core.testing.parity import TOLERANCES, assert_same
from lm_llama import SPEC, meta
from lm_llama.config import PRESETS
from lm_llama.weights import TABLES, shapes

CASE = Path(__file__).parent / "goldens_meta"
NOTHING = np.dtype([])


def whole_model(**changes):
    """A tiny model and its tensors under Meta's names."""
    model = tiny.model(SPEC, **{"hidden_size": 32, "intermediate_size": 96, **changes})
    table = TABLES["meta"].save(Memory(tiny.weights(model)), model.config)
    return model, {name: np.ascontiguousarray(array) for name, array in stream(table)}


def cut(arrays, count, *, by_rows=False):
    """What each of `count` tensor-parallel processes of Meta's code writes."""
    columns = (".wo.weight", ".w2.weight", *(() if by_rows else ("tok_embeddings.weight",)))
    files = [{"rope.freqs": np.ones(4, np.float32)} for _ in range(count)]
    for name, array in arrays.items():
        axis = int(name.endswith(columns))
        slices = np.split(array, count, axis) if array.ndim == 2 else [array] * count
        for file, piece in zip(files, slices, strict=True):
            file[name] = piece
    return files


def release(directory, model, files):
    directory.mkdir(exist_ok=True)
    values = meta.write(model.config) | {"vocab_size": -1}
    (directory / "params.json").write_text(json.dumps(values))
    for rank, arrays in enumerate(files):
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, directory / f"consolidated.{rank:02}.safetensors")
    return directory


def same_weights(source, model):
    found, expected = dict(stream(source.tensors())), tiny.weights(model)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Weights.


@pytest.mark.parity
def test_equals_transformers_on_metas_files(tmp_path):
    """Two files, grouped heads: the recorded logits; then through Hugging Face's layout."""
    from mindspore import Tensor

    with np.load(CASE / "golden.npz", allow_pickle=False) as golden:
        ids, expected = Tensor(golden["ids"].astype(np.int32)), golden["logits"]
    words = ["--input", str(CASE), "--output", str(tmp_path / "hf"), "--format", "hf"]
    assert main(["convert", "llama", *words]) == 0
    for place in (CASE, tmp_path / "hf"):
        model = AutoModel.from_pretrained(place)
        np.testing.assert_allclose(model(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)
    back = ["--input", str(tmp_path / "hf"), "--output", str(tmp_path / "meta")]
    assert main(["convert", "llama", *back, "--format", "meta"]) == 0
    written = load_file(tmp_path / "meta" / "consolidated.safetensors")
    files = [load_file(path) for path in sorted(CASE.glob("*.safetensors"))]
    assert written.keys() == files[0].keys() - {"rope.freqs"}
    for name, axis in (("tok_embeddings", 1), ("layers.1.attention.wk", 0), ("output", 0)):
        expected = np.concatenate([file[f"{name}.weight"] for file in files], axis)
        np.testing.assert_array_equal(written[f"{name}.weight"], expected)
    given = json.loads((CASE / "params.json").read_text())
    assert json.loads((tmp_path / "meta" / "params.json").read_text()) == given | {"vocab_size": 96}


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_cut_over_files(tmp_path, count, kv_heads, by_rows):
    model, arrays = whole_model(n_kv_heads=kv_heads)
    folder = release(tmp_path / "m", model, cut(arrays, count, by_rows=by_rows))
    source = hub.resolve(folder)
    assert (source.spec, source.layout) == (SPEC, "meta")
    assert (source.config.kv_heads, source.config.vocab_size) == (kv_heads, 1024)
    same_weights(source, model)
    same_weights(hub.resolve(folder / "consolidated.00.safetensors"), model)


def test_more_files_than_key_value_heads(tmp_path):
    """Each head is in several files then; not taken for more heads."""
    model, arrays = whole_model(n_kv_heads=2)
    files = cut(arrays, 4)
    for file in files:
        for layer in range(2):
            for name in ("wk", "wv"):
                file[f"layers.{layer}.attention.{name}.weight"] = np.zeros((8, 32), np.float32)
    source = hub.resolve(release(tmp_path / "m", model, files))
    with pytest.raises(CheckpointError, match=r"wk.weight is \[32, 32\] and must be \[16, 32\]"):
        source.tensors()


def test_norms_must_be_the_same_in_all_files(tmp_path):
    model, arrays = whole_model()
    files = cut(arrays, 2)
    files[1]["layers.1.ffn_norm.weight"] = files[1]["layers.1.ffn_norm.weight"] + 1
    folder = release(tmp_path / "m", model, files)
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn_norm\.weight of .*01\.safetensors"):
        AutoModel.from_pretrained(folder)


def test_the_permutation_is_the_one_of_transformers():
    """`w.view(heads, D / 2, 2, H).transpose(1, 2).reshape(...)` on queries and keys alone."""
    model, theirs = whole_model(n_kv_heads=2)
    ours = tiny.weights(model)
    for layer in range(2):
        for name, heads in (("q", 4), ("k", 2)):
            rows = theirs[f"layers.{layer}.attention.w{name}.weight"]
            halves = rows.reshape(heads, 4, 2, 32).transpose(0, 2, 1, 3).reshape(rows.shape)
            np.testing.assert_array_equal(ours[f"layers.{layer}.attention.{name}.weight"], halves.T)
            assert not np.array_equal(rows, halves)
        value = theirs[f"layers.{layer}.attention.wv.weight"]
        np.testing.assert_array_equal(ours[f"layers.{layer}.attention.v.weight"], value.T)


@pytest.mark.parametrize("count", [1, 2])
def test_files_of_torch(tmp_path, count):
    torch = pytest.importorskip("torch")
    model, arrays = whole_model(n_kv_heads=2)
    folder = release(tmp_path / "m", model, [])
    for rank, file in enumerate(cut(arrays, count)):
        state = {name: torch.tensor(array).to(torch.bfloat16) for name, array in file.items()}
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    assert_same(hub.resolve(folder).tensors(), Cast(Memory(tiny.weights(model)), "bfloat16"))


def test_files_of_torch_without_torch(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = release(tmp_path / "m", whole_model()[0], [])
    (folder / "consolidated.00.pth").write_bytes(b"PK")
    words = ["--input", str(folder), "--output", str(tmp_path / "x"), "--format", "hf"]
    assert main(["convert", "llama", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "consolidated.00.pth: a PyTorch file needs torch" in line and "lm-core[torch]" in line


# params.json.


PUBLISHED = {
    "llama_7b": {"dim": 4096, "n_heads": 32, "n_layers": 32, "multiple_of": 256, "norm_eps": 1e-06},
    "llama_65b": {"dim": 8192, "n_heads": 64, "n_layers": 80, "multiple_of": 256, "norm_eps": 1e-5},
    "llama2_13b": {
        "dim": 5120, "n_heads": 40, "n_layers": 40, "multiple_of": 256, "norm_eps": 1e-05,
    },
    "llama2_70b": {
        "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05,
    },
    "codellama_7b": {
        "dim": 4096, "n_heads": 32, "n_layers": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5, "rope_theta": 1000000,
    },
    "codellama_34b": {
        "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 48, "multiple_of": 256,
        "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000,
    },
}  # fmt: skip


def theirs_of(config):
    return TABLES["meta"].save(
        Memory({name: np.empty(shape, NOTHING) for name, shape in shapes(config).items()}), config
    )


def network_of(config):
    """All that decides what is computed."""
    return (
        config.hidden_size, config.num_layers, config.num_heads, config.kv_heads, config.ffn_size,
        config.vocab_size, config.rms_norm_eps, config.theta, config.rope,
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_meta_published(name):
    """As in the downloads; the vocabulary is -1 or not given, and the table has it."""
    preset = PRESETS[name]
    for given in ({}, {"vocab_size": -1}, {"vocab_size": preset.vocab_size}):
        config = meta.read(PUBLISHED[name] | given, theirs_of(preset).specs)
        assert network_of(config) == network_of(preset)
    assert shapes(config) == shapes(preset)
    # The 13B of Llama 2 has nothing that tells it from the first Llama.
    assert config.seq_length == (2048 if name == "llama2_13b" else preset.seq_length)


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_there_and_back(preset):
    config = PRESETS[preset]
    values = json.loads(json.dumps(meta.write(config)))
    assert network_of(meta.read(values, {})) == network_of(config)
    assert ("rope_theta" in values) == (config.theta != 10000.0)


@pytest.mark.parametrize("inner", [1, 97, 100, 1000, 11008, 14336])
def test_every_width_can_be_said(inner):
    config = PRESETS["llama_tiny"].copy(intermediate_size=inner)
    assert meta.read(meta.write(config), {}).ffn_size == inner


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope: is True; Llama is not built for that"),
        ({"moe": {"num_experts": 8}}, "moe: is {'num_experts': 8}; Llama is not built for that"),
        ({"n_heads": None}, "num_heads: "),
        ({"dim": "4096"}, "hidden_size: "),
        ({"n_kv_heads": 3}, "n_kv_heads: 3 does not divide num_heads 4"),
        ({"vocab_size": 0}, "vocab_size: "),
    ],
)
def test_wrong_descriptions(values, words):
    given = {**meta.write(PRESETS["llama_tiny"]), **values}
    with pytest.raises(ConfigError) as caught:
        meta.read(given, {})
    assert any(line.startswith(words) for line in caught.value.problems)


def test_all_missing_keys_are_named(tmp_path):
    model, arrays = whole_model()
    folder = release(tmp_path / "m", model, cut(arrays, 1))
    (folder / "params.json").write_text('{"n_layers": 2, "use_scaled_rope": true}')
    with pytest.raises(CheckpointError) as caught:
        hub.resolve(folder)
    start = f"{folder / 'params.json'}: "
    keys = [line.removeprefix(start).partition(":")[0] for line in caught.value.problems]
    assert keys == ["use_scaled_rope", "dim", "n_heads"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qkv_has_bias": True}, "qkv_has_bias: is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: is True"),
        ({"extend_method": "PI", "scaling_factor": 2.0}, "rope_scaling: is"),
        ({"task": "text_classification"}, "task: is 'text_classification'"),
    ],
)
def test_what_metas_code_does_not_compute_is_not_written(tmp_path, capsys, changes, words):
    tiny.model(SPEC, **changes).save_pretrained(tmp_path / "a")
    words_of = ["--input", str(tmp_path / "a"), "--output", str(tmp_path / "b")]
    assert main(["convert", "llama", *words_of, "--format", "meta"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"error: {words}")
    assert not (tmp_path / "b").exists()


# A release in the place of any other checkpoint.


def run_of(*words):
    import argparse

    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    return resolve_run(SPEC, parser.parse_args(words))


def test_a_run_needs_no_config():
    config = run_of("--load_checkpoint", str(CASE)).model.config
    assert network_of(config) == network_of(AutoConfig.from_pretrained(CASE))


def test_a_run_with_a_config_of_its_own(tmp_path, caplog):
    """Its lengths and presets fit without a word; what computes something else is told."""
    preset = PRESETS["llama_tiny"].copy(hidden_size=32, intermediate_size=96)
    model, arrays = whole_model()
    folder = release(tmp_path / "m", model, cut(arrays, 2))
    source = hub.resolve(folder, config=preset)
    same_weights(source, model)
    assert source.config is preset and not caplog.text
    hub.resolve(folder, config=preset.copy(theta=1e6))
    assert "params.json: theta is 10000.0, but 1000000.0 is used" in caplog.text


def test_each_rank_gets_its_part(tmp_path):
    """Of other degrees than the files; and a whole model in rank_0, as MindFormers lays it out."""
    model, arrays = whole_model()
    folder = release(tmp_path / "m", model, cut(arrays, 2))
    table = TABLES["mindformers"].save(Memory(tiny.weights(model)), model.config)
    ckpt.write(tmp_path / "ranks" / "rank_0" / "xxx.ckpt", table)
    whole = Memory(tiny.weights(model))
    for degrees in ({"tp": 2}, {"pp": 2}):
        own = parts.partition(SPEC, model.config, **degrees)
        for rank, place in product(range(2), (folder, tmp_path / "ranks")):
            found = ranks.open_for(place, model.config, SPEC, own, rank, True, tmp_path / "new")
            expected = parts.cut(whole, own, rank)
            assert found.specs.keys() == expected.specs.keys()
            for name in found.specs:
                np.testing.assert_array_equal(found.read(name), expected.read(name))


def test_transform_splits_it(tmp_path):
    words = ["--src_ckpt_dir", str(CASE), "--dst_ckpt_dir", str(tmp_path / "parts")]
    assert main(["transform", "llama", *words, "parallel_config.model_parallel=2"]) == 0
    words = ["--src_ckpt_dir", str(tmp_path / "parts"), "--dst_ckpt_dir", str(tmp_path / "whole")]
    assert main(["transform", "llama", *words]) == 0
    found = dict(stream(hub.resolve(tmp_path / "whole").tensors()))
    for name, array in stream(hub.resolve(CASE).tensors()):
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_another_package_refuses_it(tmp_path, capsys):
    pytest.importorskip("lm_gpt2")
    assert main(["evaluate", "gpt2", "--load_checkpoint", str(CASE)]) == 2
    assert "is a llama model; a gpt2 model is needed here" in capsys.readouterr().err


def test_a_converted_release_is_verified(tmp_path, capsys):
    words = ["--input", str(CASE), "--output", str(tmp_path / "a"), "--format", "meta"]
    assert main(["convert", "llama", *words]) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"consolidated.safetensors", "params.json", "manifest.json"}
    assert main(["convert", "llama", *words, "--max_shard_size", "5GB"]) == 2
    assert "the layout meta is a single file" in capsys.readouterr().err
    path = tmp_path / "a" / "consolidated.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="consolidated.safetensors: is not as it was written"):
        AutoModel.from_pretrained(tmp_path / "a")


def test_metas_files_are_never_replaced(tmp_path, capsys):
    shutil.copytree(CASE, tmp_path / "a")
    (tmp_path / "torch").mkdir()
    for name in ("params.json", "consolidated.00.pth"):
        (tmp_path / "torch" / name).write_text("{}")
    for place in ("a", "torch"):
        before = sorted((path.name, path.read_bytes()) for path in (tmp_path / place).iterdir())
        words = ["--input", str(CASE), "--output", str(tmp_path / place), "--format", "meta"]
        assert main(["convert", "llama", *words, "--overwrite"]) == 2
        assert "holds weights without manifest.json" in capsys.readouterr().err
        after = sorted((path.name, path.read_bytes()) for path in (tmp_path / place).iterdir())
        assert after == before


def test_files_beside_it_are_carried_along(tmp_path):
    shutil.copytree(CASE, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.model").write_bytes(b"x")
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    words = ["--input", str(tmp_path / "a"), "--output", str(tmp_path / "b"), "--format", "native"]
    assert main(["convert", "llama", *words]) == 0
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"x"
    assert AutoConfig.from_pretrained(tmp_path / "b").eos_token_id == [2, 5]
    assert io.has_weights(tmp_path / "b")
