"""ChatGLM2's weight tables and configuration, against recorded and published files."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core import AutoConfig, AutoModel
from lm_core.checkpoint import ckpt, hub, io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, stream
from lm_core.checkpoint.tensorfile import SafetensorsFile
from lm_core.cli import main
from lm_core.errors import CheckpointError
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_glm2 import SPEC
from lm_glm2.config import PRESETS, ChatGlm2Config
from lm_glm2.weights import TABLES, shapes

GOLDEN = Path(__file__).parent / "goldens" / "glm2"
PUBLISHED = DATA / "chatglm2_6b"
HF, MINDFORMERS = TABLES["hf"], TABLES["mindformers"]
ANGLES = "transformer.rotary_pos_emb.inv_freq"
LAYOUTS = ("native", "hf", "mindformers")


def golden():
    tensors = SafetensorsFile(GOLDEN / "model.safetensors")
    return {name: array for name, array in stream(tensors) if name != ANGLES}


@pytest.fixture(scope="module")
def config():
    return ChatGlm2Config.from_hf(json.loads((GOLDEN / "config.json").read_text()))


@pytest.fixture(scope="module")
def ours(config):
    return dict(stream(HF.load(Memory(golden()), config)))


def test_recorded_files_there_and_back(config):
    """With the angles, which are no weights."""
    file = SafetensorsFile(GOLDEN / "model.safetensors")
    assert ANGLES in file.specs
    loaded = HF.load(file, config)
    assert {name: spec.shape for name, spec in loaded.specs.items()} == shapes(config)
    assert_same(HF.save(loaded, config), golden())


def test_parts_of_one_matrix(config, ours):
    """Query rows of a head are pairs; ours are its even ones, its odd ones, and what is still."""
    theirs, layer = golden(), "transformer.encoder.layers.1."
    fused = theirs[f"{layer}self_attention.query_key_value.weight"]
    q, k, v = (ours[f"layers.1.attention.{name}.weight"].T for name in "qkv")
    assert (q.shape, k.shape, v.shape) == ((32, 32), (16, 32), (16, 32))
    order = [0, 2, 1, 3, 4, 5, 6, 7]
    for head in range(4):
        np.testing.assert_array_equal(q[8 * head :][:8], fused[8 * head :][:8][order])
    for head in range(2):
        np.testing.assert_array_equal(k[8 * head :][:8], fused[32 + 8 * head :][:8][order])
    np.testing.assert_array_equal(v, fused[48:])
    gate, up = np.split(theirs[f"{layer}mlp.dense_h_to_4h.weight"], 2)
    np.testing.assert_array_equal(ours["layers.1.mlp.gate.weight"].T, gate)
    np.testing.assert_array_equal(ours["layers.1.mlp.up.weight"].T, up)


def test_the_published_files_names():
    """Every name of the published index is a row, and no other is needed."""
    if not PUBLISHED.exists():
        pytest.skip("needs the published index of ChatGLM2-6B")
    index = json.loads((PUBLISHED / "pytorch_model.bin.index.json").read_text())
    config = ChatGlm2Config.from_hf(json.loads((PUBLISHED / "config.json").read_text()))
    arrays = {name: np.empty(shape, np.dtype([])) for name, shape in shapes(config).items()}
    theirs = HF.save(Memory(arrays), config).specs
    assert set(index["weight_map"]) == {*theirs, ANGLES}
    # The angles are 32 float16; the file says how many bytes all tensors have.
    numbers = sum(int(np.prod(spec.shape)) for spec in theirs.values())
    assert config.parameter_count() == numbers == (index["metadata"]["total_size"] - 64) // 2
    assert theirs["transformer.encoder.layers.27.self_attention.query_key_value.bias"].shape == (
        4608,
    )


def test_the_published_configuration_is_the_preset():
    if not PUBLISHED.exists():
        pytest.skip("needs the published configuration of ChatGLM2-6B")
    given = json.loads((PUBLISHED / "config.json").read_text())
    config = ChatGlm2Config.from_hf(given)
    assert shapes(config) == shapes(PRESETS["glm2_6b"])
    assert config.copy(seq_length=2048) == PRESETS["glm2_6b"].copy(
        config.explicit(), seq_length=2048
    )
    written = config.to_hf()
    for key in given.keys() - {"_name_or_path", "transformers_version", "torch_dtype"}:
        assert written[key] == given[key], key


# Files.


def directory(path, arrays, limit=None):
    path.mkdir(parents=True)
    (path / "config.json").write_text((GOLDEN / "config.json").read_text())
    tensorfile.write_sharded(path, arrays, limit)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_of_every_type_and_in_shards(tmp_path, dtype, ours):
    narrow = Cast(Memory(golden()), dtype)
    folder = directory(tmp_path / "m", narrow, 20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    found = dict(stream(hub.resolve(folder).tensors()))
    assert_same(found, Cast(Memory(ours), dtype))
    assert (found["norm.weight"].dtype == BFLOAT16) == (dtype == "bfloat16")
    loaded = tiny.weights(AutoModel.from_pretrained(folder))
    assert_same(loaded, Cast(Memory(found), "float32"))


def test_shards_of_pytorch(tmp_path, config, ours):
    """`pytorch_model-00001-of-00002.bin` and their index, as published."""
    torch = pytest.importorskip("torch")
    arrays = {**golden(), ANGLES: np.ones(2, np.float32)}
    names, folder = sorted(arrays), directory(tmp_path / "m", Memory({}))
    for path in folder.glob("model*"):
        path.unlink()
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: torch.from_numpy(arrays[name]) for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(tiny.weights(AutoModel.from_pretrained(folder)), ours)
    # The card's glm2_6b.pth: all of it in one file.
    torch.save(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "a.pth"
    )
    words = ["--input", tmp_path / "a.pth", "--config", GOLDEN, "--output", tmp_path / "o.ckpt"]
    assert convert(*words) == 0
    assert_same(MINDFORMERS.load(io.open_file(tmp_path / "o.ckpt"), config), ours)


def renamed():
    """What the card's script makes of a state dict: all of it, with another name for the table."""
    arrays = {**golden(), ANGLES: np.ones(2, np.float32)}
    return {
        name.replace("word_embeddings.weight", "embedding_table"): arrays[name] for name in arrays
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cards_own_script(tmp_path, config, ours, dtype):
    """Its `.ckpt`, with the angles in it, alone and in the folder of a rank."""
    for path in ("glm2_6b.ckpt", "ranks/rank_0/glm2_6b.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        ckpt.write(tmp_path / path, Cast(Memory(renamed()), dtype))
        place = tmp_path / path.partition("/rank_0")[0]
        expected = dict(stream(Cast(Cast(Memory(ours), dtype), "float32")))
        assert_same(tiny.weights(AutoModel.from_pretrained(place, config=config)), expected)
    assert hub.layout_of(SPEC, config, Memory(renamed())) == "mindformers"


def convert(*words):
    return main(["convert", "glm2", *map(str, words)])


@pytest.mark.parametrize("way", list(product(LAYOUTS, LAYOUTS)), ids="-".join)
def test_every_way_back_gives_the_same_bytes(tmp_path, way):
    source = directory(tmp_path / "0", Memory(golden()))
    for number, layout in enumerate((*way, "hf")):
        target = tmp_path / f"{number + 1}"
        assert convert("--input", source, "--output", target, "--format", layout) == 0
        source = target
    assert_same(io.open_directory(source), golden())
    theirs, given = (json.loads((tmp_path / n / "config.json").read_text()) for n in "30")
    assert {key: theirs.get(key) for key in given.keys() - {"transformers_version"}} == {
        key: given[key] for key in given.keys() - {"transformers_version"}
    }


def test_names_that_are_missing_unknown_or_wrong_are_listed_together(config):
    arrays = golden()
    block = "transformer.encoder.layers."
    del arrays[f"{block}1.mlp.dense_4h_to_h.weight"]
    arrays[f"{block}2.mlp.dense_4h_to_h.weight"] = np.zeros((32, 48), np.float32)
    arrays[f"{block}0.self_attention.query_key_value.bias"] = np.zeros(96, np.float32)
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    missing, unknown, wrong = caught.value.problems
    assert f"1 missing tensor: {block}1.mlp.dense_4h_to_h.weight" in missing
    assert f"1 unknown tensor: {block}2.mlp.dense_4h_to_h.weight" in unknown
    assert "query_key_value.bias is [96] and must be [64]" in wrong


def test_published_weights_are_named():
    assert HF.published == {"glm2_6b": "THUDM/chatglm2-6b"}
    assert hub.HUB_ID.fullmatch(HF.published["glm2_6b"])
    assert AutoConfig.from_pretrained("glm2_6b") == PRESETS["glm2_6b"]
