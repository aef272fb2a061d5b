"""PanGu-alpha's weight tables and configuration, against recorded and published files."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from lm_core import AutoConfig, AutoModel
from lm_core.checkpoint import ckpt, hub, io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, stream
from lm_core.checkpoint.tensorfile import SafetensorsFile
from lm_core.cli import main
from lm_core.errors import CheckpointError, ConfigError
from lm_core.testing import tiny
from lm_core.testing.parity import TOLERANCES, assert_same
from lm_pangualpha import SPEC
from lm_pangualpha.config import PRESETS, PanguAlphaConfig
from lm_pangualpha.weights import TABLES, shapes

GOLDEN = Path(__file__).parent / "goldens" / "pangualpha"
HF, MINDFORMERS = TABLES["hf"], TABLES["mindformers"]
MASKS = re.compile(r"transformer\.h\.\d\.attn\.(bias|masked_bias)")
HEAD = "lm_head.weight"
LAYOUTS = ("native", "hf", "mindformers")


def golden():
    """Without the masks, which are no weights, and the head, which is the table of tokens again."""
    tensors = SafetensorsFile(GOLDEN / "model.safetensors")
    names = [name for name in tensors.specs if name != HEAD and not MASKS.fullmatch(name)]
    return {name: tensors.read(name) for name in names}


@pytest.fixture(scope="module")
def config():
    return PanguAlphaConfig.from_hf(json.loads((GOLDEN / "config.json").read_text()))


@pytest.fixture(scope="module")
def ours(config):
    return dict(stream(HF.load(Memory(golden()), config)))


# Names.


def test_recorded_files_there_and_back(config):
    """With the masks, and the head."""
    file = SafetensorsFile(GOLDEN / "model.safetensors")
    assert sum(bool(MASKS.fullmatch(name)) for name in file.specs) == 6
    assert file.read(HEAD).tobytes() == file.read("transformer.wte.weight").tobytes()
    loaded = HF.load(file, config)
    assert {name: spec.shape for name, spec in loaded.specs.items()} == shapes(config)
    assert_same(HF.save(loaded, config), golden())


# The norms, the linear layers, and which of these MindFormers stores [out, in]; as the port does.
NORMS = {"layernorm1": "ln_1", "layernorm2": "ln_2"}
LINEAR = {
    "attention.dense1": ("attn.q_proj", True),
    "attention.dense2": ("attn.k_proj", True),
    "attention.dense3": ("attn.v_proj", True),
    "attention.projection": ("attn.c_proj", False),
    "output.mapping": ("mlp.c_fc", False),
    "output.projection": ("mlp.c_proj", False),
}


def renamed(theirs, layers=3):
    """What MindFormers stores of the port's tensors."""
    found = {
        "backbone.embedding.word_embedding.embedding_table": theirs["transformer.wte.weight"],
        "backbone.embedding.position_embedding.embedding_table": theirs["transformer.wpe.weight"],
        "backbone.top_query_embedding.embedding_table": theirs["transformer.wqe.weight"],
        "backbone.layernorm.gamma": theirs["transformer.ln_f.weight"],
        "backbone.layernorm.beta": theirs["transformer.ln_f.bias"],
    }
    for layer in range(layers):
        end = "top_query_layer" if layer == layers - 1 else f"blocks.{layer}"
        to, of = f"backbone.{end}.", f"transformer.h.{layer}."
        for name, port in NORMS.items():
            found[f"{to}{name}.gamma"] = theirs[f"{of}{port}.weight"]
            found[f"{to}{name}.beta"] = theirs[f"{of}{port}.bias"]
        for name, (port, alike) in LINEAR.items():
            weight = theirs[f"{of}{port}.weight"]
            found[f"{to}{name}.weight"] = np.ascontiguousarray(weight if alike else weight.T)
            found[f"{to}{name}.bias"] = theirs[f"{of}{port}.bias"]
    return found


def test_mindformers_names_and_orders(config, ours):
    assert_same(MINDFORMERS.save(Memory(ours), config), renamed(golden()))


def test_published_sizes():
    """Names and shapes of both sizes; the vocabulary and the query layer are counted."""
    for preset, layers, hidden in (("pangualpha_2_6b", 32, 2560), ("pangualpha_13b", 40, 5120)):
        config = PRESETS[preset]
        nothing = {name: np.empty(shape, np.dtype([])) for name, shape in shapes(config).items()}
        theirs = MINDFORMERS.save(Memory(nothing), config).specs
        assert len(theirs) == 5 + 16 * layers
        assert f"backbone.blocks.{layers - 2}.output.mapping.weight" in theirs
        assert f"backbone.blocks.{layers - 1}.output.mapping.weight" not in theirs
        assert theirs["backbone.top_query_layer.output.mapping.weight"].shape == (
            hidden,
            4 * hidden,
        )
        assert theirs["backbone.top_query_embedding.embedding_table"].shape == (1024, hidden)
        assert set(theirs) == set(TABLES["official"].save(Memory(nothing), config).specs)
        numbers = sum(int(np.prod(spec.shape)) for spec in theirs.values())
        assert numbers == config.parameter_count()
    assert PRESETS["pangualpha_2_6b"].parameter_count() == 2_625_295_360
    assert PRESETS["pangualpha_13b"].parameter_count() == 12_800_870_400


def test_the_layout_is_found_by_the_names(config, ours):
    """The official release has MindFormers' names; a file is taken for one of MindFormers."""
    for layout in LAYOUTS:
        theirs = (
            ours if layout == "native" else dict(stream(TABLES[layout].save(Memory(ours), config)))
        )
        assert hub.layout_of(SPEC, config, Memory(theirs)) == layout


# Configurations.


def test_a_config_json_of_defaults():
    """As the port's class fills in what its file leaves out; the exact GELU is its default."""
    config = PanguAlphaConfig.from_hf({"model_type": "gpt_pangu"})
    assert shapes(config) == shapes(PRESETS["pangualpha_2_6b"])
    assert config.hidden_act == "gelu_exact"
    assert config.copy(hidden_act="fast_gelu", bos_token_id=None) == PRESETS["pangualpha_2_6b"]


def test_configurations_there_and_back(config):
    given = json.loads((GOLDEN / "config.json").read_text())
    written = config.to_hf()
    passed_over = {"transformers_version", "torch_dtype", "use_cache"}
    for key in given.keys() - passed_over - {key for key in given if key.startswith("summary_")}:
        assert written[key] == given[key], key
    for preset in PRESETS.values():
        back = PanguAlphaConfig.from_hf(json.loads(json.dumps(preset.to_hf())))
        assert shapes(back) == shapes(preset) and back.hidden_act == preset.hidden_act
        assert (back.pad_token_id, back.eod_token_id, back.eos_token_id) == (6, 6, 9)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale_attn_weights": False}, "scale_attn_weights: is False; PanGu-alpha is built for"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: is False; PanGu-alpha is built for"),
        ({"activation_function": "tanh"}, "activation_function: is 'tanh'; it must be one of"),
        ({"num_heads": 3}, "num_heads: "),
        ({"vocab_size": "many"}, "vocab_size: "),
    ],
)
def test_wrong_configurations(values, words):
    with pytest.raises(ConfigError) as caught:
        PanguAlphaConfig.from_hf({"model_type": "gpt_pangu", **values})
    assert any(line.startswith(words) for line in caught.value.problems)


def test_what_the_port_does_not_compute_is_not_written(tmp_path, capsys):
    tiny.model(SPEC, post_layernorm_residual=True).save_pretrained(tmp_path / "a")
    assert convert("--input", tmp_path / "a", "--output", tmp_path / "b", "--format", "hf") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: post_layernorm_residual: is True; the PyTorch port has no such")
    assert not (tmp_path / "b").exists()


# Files.


def directory(path, arrays, limit=None):
    path.mkdir(parents=True)
    (path / "config.json").write_text((GOLDEN / "config.json").read_text())
    tensorfile.write_sharded(path, arrays, limit)
    return path


def convert(*words):
    return main(["convert", "pangualpha", *map(str, words)])


@pytest.mark.parametrize("way", list(product(LAYOUTS, LAYOUTS)), ids="-".join)
def test_every_way_back_gives_the_same_bytes(tmp_path, way):
    source = directory(tmp_path / "0", Memory(golden()))
    for n, layout in enumerate((*way, "hf")):
        target = tmp_path / f"{n + 1}"
        assert convert("--input", source, "--output", target, "--format", layout) == 0
        source = target
    assert_same(io.open_directory(source), golden())
    theirs, given = (json.loads((tmp_path / n / "config.json").read_text()) for n in "30")
    kept = {key for key in given if not key.startswith("summary_")}
    kept -= {"transformers_version", "use_cache"}
    assert {key: theirs.get(key) for key in kept} == {key: given[key] for key in kept}


def test_one_file_of_mindformers(tmp_path, ours, config):
    """The recorded folder to a .ckpt, and that file alone back; with an optimizer in it, too."""
    assert convert("--torch_ckpt_dir", GOLDEN, "--mindspore_ckpt_path", tmp_path / "a.ckpt") == 0
    file = io.open_file(tmp_path / "a.ckpt")
    assert_same(file, renamed(golden()))
    extra = {f"adam_m.{name}": array for name, array in stream(file)}
    both = Memory({**dict(stream(file)), **extra, "global_step": np.int32([3])})
    ckpt.write(tmp_path / "b.ckpt", both)
    for name in "ab":
        words = ("--input", tmp_path / f"{name}.ckpt", "--config", GOLDEN)
        assert convert(*words, "--output", tmp_path / name, "--format", "hf") == 0
        assert_same(io.open_directory(tmp_path / name), golden())
    assert_same(tiny.weights(AutoModel.from_pretrained(tmp_path / "a.ckpt", config=config)), ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_of_every_type_and_in_shards(tmp_path, dtype, ours):
    folder = directory(tmp_path / "m", Cast(Memory(golden()), dtype), 20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    found = dict(stream(hub.resolve(folder).tensors()))
    assert_same(found, Cast(Memory(ours), dtype))
    assert (found["embedding.weight"].dtype == BFLOAT16) == (dtype == "bfloat16")


def test_the_published_file_of_pytorch(tmp_path, ours):
    """`pytorch_model.bin`, with the masks."""
    torch = pytest.importorskip("torch")
    shutil.copy(GOLDEN / "config.json", tmp_path)
    arrays = dict(stream(SafetensorsFile(GOLDEN / "model.safetensors")))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(tiny.weights(AutoModel.from_pretrained(tmp_path)), ours)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("activation", "recorded"),
    [("fast_gelu", "logits_quick_gelu"), ("gelu_tanh", "logits_gelu_new")],
)
def test_the_other_activations(config, activation, recorded):
    """The released models compute the first; config.json of the recorded one says another."""
    from mindspore import Tensor

    model = AutoModel.from_pretrained(GOLDEN, config=config.copy(hidden_act=activation))
    model.set_train(False)
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as file:
        logits = model(Tensor(file["input_ids"].astype(np.int32))).asnumpy()
        np.testing.assert_allclose(logits, file[recorded], rtol=0, atol=TOLERANCES.logits)
        assert np.abs(logits - file["logits"]).max() > 10 * TOLERANCES.logits


def test_split_and_merged(tmp_path, ours):
    """Two stages of two ranks; the table at both ends, the query layer with the last."""
    words = ["--src_ckpt_dir", str(GOLDEN), "--dst_ckpt_dir", str(tmp_path / "parts")]
    words += ["parallel_config.model_parallel=2", "parallel_config.pipeline_stage=2"]
    assert main(["transform", "pangualpha", *words]) == 0
    first, last = (io.open_directory(tmp_path / "parts" / f"rank_{rank}") for rank in (0, 3))
    assert "position_embedding.weight" in first.specs
    assert "query_embedding.weight" not in first.specs
    assert last.specs["layers.2.mlp.up.weight"].shape == (32, 64)
    query = last.read("query_embedding.weight")
    np.testing.assert_array_equal(query, ours["query_embedding.weight"])
    words = ["--src_ckpt_dir", str(tmp_path / "parts"), "--dst_ckpt_dir", str(tmp_path / "whole")]
    assert main(["transform", "pangualpha", *words]) == 0
    assert_same(hub.resolve(tmp_path / "whole").tensors(), ours)


# What is wrong.


def test_names_that_are_missing_unknown_or_wrong_are_listed_together(config):
    arrays = golden()
    del arrays["transformer.wqe.weight"]
    arrays["transformer.h.3.mlp.c_fc.bias"] = np.zeros(128, np.float32)
    arrays["transformer.h.2.attn.q_proj.weight"] = np.zeros((32, 64), np.float32)
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    missing, unknown, wrong = caught.value.problems
    assert "1 missing tensor: transformer.wqe.weight" in missing
    assert "1 unknown tensor: transformer.h.3.mlp.c_fc.bias" in unknown
    assert "h.2.attn.q_proj.weight is [32, 64] and must be [32, 32]" in wrong


def test_a_head_that_is_not_the_table(config):
    arrays = golden()
    arrays[HEAD] = arrays["transformer.wte.weight"] + 1
    loaded = HF.load(Memory(arrays, "file"), config)
    with pytest.raises(CheckpointError, match="lm_head.weight differs from transformer.wte.weight"):
        loaded.read("embedding.weight")


def test_published_weights_are_named():
    assert HF.published == {"pangualpha_2_6b": "imone/pangu_2_6B"}
    assert hub.HUB_ID.fullmatch(HF.published["pangualpha_2_6b"])
    assert AutoConfig.from_pretrained("pangualpha_2_6b") == PRESETS["pangualpha_2_6b"]
