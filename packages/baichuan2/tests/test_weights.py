"""Baichuan 2's weight tables and configuration, against recorded and published files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_baichuan2 import SPEC
from lm_baichuan2.config import PRESETS, Baichuan2Config
from lm_baichuan2.weights import TABLES, shapes
from lm_core import AutoConfig, AutoModel
from lm_core.checkpoint import ckpt, hub, io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, stream
from lm_core.checkpoint.tensorfile import SafetensorsFile
from lm_core.cli import main
from lm_core.errors import CheckpointError, ConfigError
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same

GOLDENS = Path(__file__).parent / "goldens"
CASES = ("baichuan2_7b", "baichuan2_13b")
PUBLISHED = {"baichuan2_13b": DATA / "baichuan2_13b_chat"}
HF, MINDFORMERS = TABLES["hf"], TABLES["mindformers"]
LAYOUTS = ("native", "hf", "mindformers")


def golden(case="baichuan2_7b"):
    return dict(stream(SafetensorsFile(GOLDENS / case / "model.safetensors")))


def described(case="baichuan2_7b"):
    return json.loads((GOLDENS / case / "config.json").read_text())


@pytest.fixture(scope="module")
def config():
    return Baichuan2Config.from_hf(described())


@pytest.fixture(scope="module")
def ours(config):
    return dict(stream(HF.load(Memory(golden()), config)))


def as_mindformers(theirs):
    """The published script: the fused matrix in three, other names, every array as it is."""
    names = {
        "embed_tokens.weight": "tok_embeddings.embedding_weight", "norm.weight": "norm_out.weight",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip
    made = {}
    for name, array in theirs.items():
        if "W_pack" in name:
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                made[name.replace("self_attn.W_pack", f"attention.w{part}")] = rows
            continue
        rest = name.removeprefix("model.")
        olds = [old for old in names if rest == old or f".{old}." in rest]
        new = rest.replace(olds[0], names[olds[0]]) if olds else rest
        made[new if name == "lm_head.weight" else f"model.{new}"] = array
    return made


@pytest.mark.parametrize("case", CASES)
def test_recorded_files_there_and_back(case):
    config = Baichuan2Config.from_hf(described(case))
    loaded = HF.load(SafetensorsFile(GOLDENS / case / "model.safetensors"), config)
    assert {name: spec.shape for name, spec in loaded.specs.items()} == shapes(config)
    assert_same(HF.save(loaded, config), golden(case))


def test_parts_of_one_matrix_and_the_head(ours):
    theirs = golden()
    for layer in range(2):
        fused = theirs[f"model.layers.{layer}.self_attn.W_pack.weight"]
        assert fused.shape == (96, 32)
        for part, rows in zip("qkv", (fused[:32], fused[32:64], fused[64:]), strict=True):
            np.testing.assert_array_equal(ours[f"layers.{layer}.attention.{part}.weight"].T, rows)
    np.testing.assert_array_equal(ours["head.weight"].T, theirs["lm_head.weight"])
    lengths = np.linalg.norm(theirs["lm_head.weight"], axis=1)
    assert lengths.std() > 0.01 and abs(lengths - 1).min() > 0.01


def test_mindformers_as_its_converter_makes_it(config, ours):
    saved = dict(stream(MINDFORMERS.save(Memory(ours), config)))
    assert_same(saved, as_mindformers(golden()))
    assert_same(MINDFORMERS.load(Memory(saved), config), ours)


def test_optimizer_state_of_a_mindformers_checkpoint_is_left_out(config, ours):
    saved = as_mindformers(golden())
    state = {f"adam_{kind}.{name}": array for kind in "mv" for name, array in saved.items()}
    state |= {name: np.zeros(1) for name in ("global_step", "scale_sense", "epoch_num")}
    assert_same(MINDFORMERS.load(Memory(saved | state), config), ours)


def test_the_published_files_names():
    """Every name of the published index is a row, and no other is needed."""
    folder = PUBLISHED["baichuan2_13b"]
    if not folder.exists():
        pytest.skip("needs the published index of Baichuan2-13B-Chat")
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    config = Baichuan2Config.from_hf(json.loads((folder / "config.json").read_text()))
    arrays = {name: np.empty(shape, np.dtype([])) for name, shape in shapes(config).items()}
    theirs = HF.save(Memory(arrays), config).specs
    assert set(index["weight_map"]) == set(theirs)
    numbers = sum(int(np.prod(spec.shape)) for spec in theirs.values())
    assert config.parameter_count() == numbers == index["metadata"]["total_size"] // 2
    assert theirs["model.layers.39.self_attn.W_pack.weight"].shape == (15360, 5120)


@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b_chat"])
def test_the_published_configurations_are_the_presets(name):
    """That of 7B beside the vocabulary has other sizes than the model, and says so."""
    path = DATA / name / "config.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    given = json.loads(path.read_text())
    config, preset = Baichuan2Config.from_hf(given), PRESETS[name.removesuffix("_chat")]
    sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
    if name == "baichuan2_7b":
        config = config.copy({size: getattr(preset, size) for size in sizes})
    assert config.copy(preset.explicit()) == config == preset.copy(config.explicit())
    assert shapes(config) == shapes(preset)
    written = config.to_hf()
    unknown = {"_from_model_config", "transformers_version", "torch_dtype"}
    unknown |= {"gradient_checkpointing"} | ({*given} if name == "baichuan2_7b" else set())
    for key in given.keys() - unknown:
        assert written[key] == given[key], key


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_there_and_back(preset):
    """What tells the two networks apart is whether positions have an end."""
    config = PRESETS[preset]
    written = json.loads(json.dumps(config.to_hf()))
    assert ("max_position_embeddings" in written) == config.rotates
    back = Baichuan2Config.from_hf(written)
    assert (back.position_embedding, back.ffn_size) == (config.position_embedding, config.ffn_size)
    assert back.trained_positions == config.trained_positions
    assert Baichuan2Config.from_hf(back.to_hf()) == back


@pytest.mark.parametrize("case", CASES)
def test_7b_and_13b_are_told_apart(case):
    config = AutoConfig.from_pretrained(GOLDENS / case)
    assert config.position_embedding == PRESETS[case].position_embedding


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 64000}, "vocab_size: is 64000, that of the first Baichuan"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config: is given, so"),
        ({"hidden_act": "gelu"}, "hidden_act: is 'gelu'; Baichuan2 is built for 'silu' only"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: is True"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, capsys, changes, says):
    folder = directory(tmp_path / "m", Memory(golden()))
    (folder / "config.json").write_text(json.dumps({**described(), **changes}))
    with pytest.raises(ConfigError, match=says):
        Baichuan2Config.from_hf({**described(), **changes})
    assert convert("--input", folder, "--output", tmp_path / "o", "--format", "native") == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "more",
    [
        # As bitsandbytes writes 8 and 4 bits, GPTQ, and the model's own program.
        {"model.layers.0.self_attn.W_pack.SCB": 96, "model.layers.0.mlp.up_proj.SCB": 48},
        {
            "model.layers.0.self_attn.W_pack.weight.absmax": 4,
            "model.layers.0.self_attn.W_pack.weight.quant_state.bitsandbytes__nf4": 8,
        },
        {
            "model.layers.0.self_attn.W_pack.qweight": 8,
            "model.layers.0.self_attn.W_pack.g_idx": 8,
        },
        {"model.layers.0.self_attn.W_pack.weight.data": 8, "lm_head.weight.data": 3},
    ],
)
def test_quantized_weights_are_refused_by_name(config, more):
    arrays = golden() | {name: np.zeros(size, np.uint8) for name, size in more.items()}
    del arrays["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    (line,) = caught.value.problems
    assert line.startswith(f"file: holds quantized weights ({next(iter(more))} and 1 more beside")


# Files.


def directory(path, arrays, limit=None, case="baichuan2_7b"):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(described(case)))
    tensorfile.write_sharded(path, arrays, limit)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_of_every_type_and_in_shards(tmp_path, dtype, ours):
    folder = directory(tmp_path / "m", Cast(Memory(golden()), dtype), 20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    found = dict(stream(hub.resolve(folder).tensors()))
    assert_same(found, Cast(Memory(ours), dtype))
    assert (found["norm.weight"].dtype == BFLOAT16) == (dtype == "bfloat16")
    loaded = tiny.weights(AutoModel.from_pretrained(folder))
    assert_same(loaded, Cast(Memory(found), "float32"))


@pytest.mark.parametrize("case", CASES)
def test_generating_leaves_the_weights_as_they_are(tmp_path, case):
    """The head too, whose rows are used in a length that they do not have."""
    folder = directory(tmp_path / "m", Memory(golden(case)), case=case)
    model = AutoModel.from_pretrained(folder)
    for use_past in (True, False):
        model.generate([[5, 6, 7]], max_new_tokens=3, use_past=use_past)
    model.save_pretrained(tmp_path / "saved")
    words = ["--input", tmp_path / "saved", "--output", tmp_path / "back", "--format", "hf"]
    assert convert(*words) == 0
    assert_same(io.open_directory(tmp_path / "back"), golden(case))


def convert(*words):
    return main(["convert", "baichuan2", *map(str, words)])


@pytest.mark.parametrize("way", list(product(LAYOUTS, LAYOUTS)), ids="-".join)
def test_every_way_back_gives_the_same_bytes(tmp_path, way):
    case = CASES[LAYOUTS.index(way[0]) % 2]
    source = directory(tmp_path / "0", Memory(golden(case)), case=case)
    for number, layout in enumerate((*way, "hf")):
        target = tmp_path / f"{number + 1}"
        assert convert("--input", source, "--output", target, "--format", layout) == 0
        source = target
    assert_same(io.open_directory(source), golden(case))
    back, given = (json.loads((tmp_path / n / "config.json").read_text()) for n in "30")
    for key in given.keys() - {"transformers_version", "gradient_checkpointing"}:
        assert back.get(key) == given[key], key


def test_the_words_of_the_model_card(tmp_path, capsys):
    """Any one file of a folder means all of them; the result is one .ckpt file."""
    source = directory(tmp_path / "hf", Memory(golden()), 20_000)
    for number, file in enumerate(sorted(source.glob("*.safetensors"))[:2]):
        words = ["--torch_ckpt_path", file, "--mindspore_ckpt_path", tmp_path / f"{number}"]
        assert convert(*words) == 0
        found = dict(stream(io.open_file(tmp_path / f"{number}.ckpt")))
        assert_same(found, as_mindformers(golden()))
    assert "layout mindformers" in capsys.readouterr().out
    file.unlink()
    words = ["--torch_ckpt_path", sorted(source.glob("*.safetensors"))[0]]
    assert convert(*words, "--output", tmp_path / "o.ckpt") == 2
    error = capsys.readouterr().err
    assert f"{file.name} missing; all shards must be there" in error


def test_shards_of_pytorch(tmp_path, ours):
    """`pytorch_model-00001-of-00003.bin` and their index, as 13B is published; 7B is one file."""
    torch = pytest.importorskip("torch")
    arrays, folder = golden(), directory(tmp_path / "m", Memory({}))
    for path in folder.glob("model*"):
        path.unlink()
    where = {}
    for number in range(1, 4):
        file = f"pytorch_model-0000{number}-of-00003.bin"
        part = sorted(arrays)[number - 1 :: 3]
        torch.save({name: torch.from_numpy(arrays[name]) for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(tiny.weights(AutoModel.from_pretrained(folder)), ours)
    words = ["--torch_ckpt_path", folder / "pytorch_model-00002-of-00003.bin"]
    assert convert(*words, "--mindspore_ckpt_path", tmp_path / "all") == 0
    assert_same(io.open_file(tmp_path / "all.ckpt"), as_mindformers(arrays))
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    whole = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(whole, folder / "pytorch_model.bin")
    assert_same(tiny.weights(AutoModel.from_pretrained(folder)), ours)
    words = ["--torch_ckpt_path", folder / "pytorch_model.bin"]
    assert convert(*words, "--mindspore_ckpt_path", tmp_path / "one") == 0
    assert_same(io.open_file(tmp_path / "one.ckpt"), as_mindformers(arrays))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_files_of_the_cards_own_script(tmp_path, config, ours, dtype):
    """Its `.ckpt`, alone and in the folder of a rank."""
    for path in ("Baichuan2_7B_Base.ckpt", "ranks/rank_0/Baichuan2_7B_Base.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        ckpt.write(tmp_path / path, Cast(Memory(as_mindformers(golden())), dtype))
        place = tmp_path / path.partition("/rank_0")[0]
        expected = dict(stream(Cast(Cast(Memory(ours), dtype), "float32")))
        assert_same(tiny.weights(AutoModel.from_pretrained(place, config=config)), expected)
    assert hub.layout_of(SPEC, config, Memory(as_mindformers(golden()))) == "mindformers"


def test_weights_of_the_other_network_are_told(tmp_path, config, caplog):
    """All shapes are alike; only what the folder says of positions tells them apart."""
    folder = directory(tmp_path / "m", Memory(golden("baichuan2_13b")), case="baichuan2_13b")
    given = AutoConfig.from_pretrained(folder).copy(position_embedding="rope")
    hub.resolve(folder, config=given)
    assert "position_embedding is 'alibi', but 'rope' is used" in caplog.text


def test_names_that_are_missing_unknown_or_wrong_are_listed_together(config):
    arrays = golden()
    del arrays["model.layers.1.mlp.down_proj.weight"]
    arrays["model.layers.2.mlp.down_proj.weight"] = np.zeros((32, 48), np.float32)
    arrays["model.layers.0.self_attn.W_pack.weight"] = np.zeros((64, 32), np.float32)
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    missing, unknown, wrong = caught.value.problems
    assert "1 missing tensor: model.layers.1.mlp.down_proj.weight" in missing
    assert "1 unknown tensor: model.layers.2.mlp.down_proj.weight" in unknown
    assert "W_pack.weight is [64, 32] and must be [96, 32]" in wrong


def test_published_weights_are_named():
    assert HF.published == {
        "baichuan2_7b": "baichuan-inc/Baichuan2-7B-Base",
        "baichuan2_13b": "baichuan-inc/Baichuan2-13B-Base",
    }
    for preset, repository in HF.published.items():
        assert hub.HUB_ID.fullmatch(repository)
        assert AutoConfig.from_pretrained(preset) == PRESETS[preset]
