"""Llama's weight tables and its Hugging Face configuration, against recorded checkpoints."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from lm_core import AutoConfig, AutoModel
from lm_core.checkpoint import ckpt, hub, io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, Native, stream
from lm_core.checkpoint.source import table_of
from lm_core.checkpoint.tensorfile import SafetensorsFile
from lm_core.cli import main
from lm_core.errors import CheckpointError, ConfigError
from lm_core.parallel import strategy
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_llama import SPEC
from lm_llama.config import PRESETS, LlamaConfig
from lm_llama.weights import TABLES, shapes

GOLDENS = Path(__file__).parent / "goldens"
CASES = ("llama2", "codellama")
HF, MINDFORMERS, META = TABLES["hf"], TABLES["mindformers"], TABLES["meta"]
BUFFER = "rotary_emb.inv_freq"


def golden(case="codellama"):
    tensors = SafetensorsFile(GOLDENS / case / "model.safetensors")
    return {name: array for name, array in stream(tensors) if not name.endswith(BUFFER)}


def configured(case="codellama"):
    return LlamaConfig.from_hf(json.loads((GOLDENS / case / "config.json").read_text()))


@pytest.fixture(scope="module")
def config():
    return configured()


@pytest.fixture(scope="module")
def ours(config):
    return dict(stream(HF.load(Memory(golden()), config)))


@pytest.mark.parametrize("case", CASES)
def test_recorded_files_there_and_back(case):
    """Llama 2's have the angles of old versions of transformers, which are no weights."""
    config = configured(case)
    file = SafetensorsFile(GOLDENS / case / "model.safetensors")
    assert any(name.endswith(BUFFER) for name in file.specs) == (case == "llama2")
    loaded = HF.load(file, config)
    assert {name: spec.shape for name, spec in loaded.specs.items()} == shapes(config)
    assert_same(HF.save(loaded, config), golden(case))


def test_every_matrix_is_transposed_and_nothing_else(ours):
    theirs = golden()
    pairs = {
        "self_attn.q_proj": "attention.q", "self_attn.k_proj": "attention.k",
        "self_attn.v_proj": "attention.v", "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
    }  # fmt: skip
    for layer, (name, own) in product(range(2), pairs.items()):
        array = theirs[f"model.layers.{layer}.{name}.weight"]
        np.testing.assert_array_equal(ours[f"layers.{layer}.{own}.weight"], array.T)
    np.testing.assert_array_equal(ours["embedding.weight"], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(ours["head.weight"], theirs["lm_head.weight"].T)


def as_mindformers(theirs):
    """The published script: other names, every array as it is."""
    names = {
        "embed_tokens.weight": "tok_embeddings.embedding_weight", "norm.weight": "norm_out.weight",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip

    def renamed(name):
        head, _, rest = name.partition("model.")
        for old, new in names.items():
            if rest == old or f".{old}." in rest:
                return f"model.{rest.replace(old, new)}"
        assert head == "lm_head.weight"
        return name

    return {renamed(name): array for name, array in theirs.items()}


def test_mindformers_as_its_converter_makes_it(config, ours):
    saved = dict(stream(MINDFORMERS.save(Memory(ours), config)))
    assert_same(saved, as_mindformers(golden()))
    assert_same(MINDFORMERS.load(Memory(saved), config), ours)


def test_biases_of_mindformers(ours, config):
    """`qkv_has_bias`; Hugging Face's Llama has no such network."""
    biased = config.copy(qkv_has_bias=True)
    rng = np.random.default_rng(0)
    more = {n: rng.normal(size=s).astype("f4") for n, s in shapes(biased).items() if n not in ours}
    assert len(more) == 6 and more["layers.0.attention.k.bias"].shape == (16,)
    saved = dict(stream(MINDFORMERS.save(Memory(ours | more), biased)))
    bias = saved["model.layers.1.attention.wk.bias"]
    np.testing.assert_array_equal(bias, more["layers.1.attention.k.bias"])
    assert_same(MINDFORMERS.load(Memory(saved), biased), ours | more)
    with pytest.raises(CheckpointError, match=r"6 unknown tensors: .*attention\.wq\.bias"):
        MINDFORMERS.load(Memory(saved), config)
    with pytest.raises(ConfigError, match="qkv_has_bias: is True"):
        biased.to_hf()


def test_optimizer_state_of_a_mindformers_checkpoint_is_left_out(config, ours):
    saved = as_mindformers(golden())
    state = {f"adam_{kind}.{name}": array for kind in "mv" for name, array in saved.items()}
    state |= {name: np.zeros(1) for name in ("global_step", "scale_sense", "epoch_num")}
    state["model.layers.0.attention.infer_attention.kvcache_mgr.key_past"] = np.zeros((1, 2, 8, 8))
    assert_same(MINDFORMERS.load(Memory(saved | state), config), ours)


def test_tied_tables(config):
    tied = config.copy(tie_word_embeddings=True)
    theirs = golden()
    head = theirs.pop("lm_head.weight")
    loaded = dict(stream(HF.load(Memory(theirs), tied)))
    assert "head.weight" not in loaded
    np.testing.assert_array_equal(loaded["embedding.weight"], theirs["model.embed_tokens.weight"].T)
    assert_same(HF.save(Memory(loaded), tied), theirs)
    with pytest.raises(CheckpointError, match="lm_head.weight differs from model.embed_tokens"):
        dict(stream(HF.load(Memory(theirs | {"lm_head.weight": head}), tied)))


def test_a_report_with_all_names(config):
    arrays = golden()
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        del arrays[name]
    arrays |= {"model.layers.2.mlp.up_proj.weight": np.zeros(2), "classifier": np.zeros(2)}
    arrays["model.layers.1.self_attn.k_proj.weight"] = np.zeros((48, 48), np.float32)
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    missing, unknown, wrong = caught.value.problems
    assert "2 missing tensors: model.layers.0.mlp.up_proj.weight, model.norm.weight;" in missing
    assert "2 unknown tensors: model.layers.2.mlp.up_proj.weight, classifier;" in unknown
    assert "k_proj.weight is [48, 48] and must be [16, 48]" in wrong


def test_the_published_shapes():
    """Of codellama/CodeLlama-34b-hf."""
    arrays = {n: np.empty(s, np.dtype([])) for n, s in shapes(PRESETS["codellama_34b"]).items()}
    theirs = HF.save(Memory(arrays), PRESETS["codellama_34b"])
    sizes = {name: spec.shape for name, spec in theirs.specs.items()}
    assert len(sizes) == 3 + 9 * 48
    assert sizes["model.embed_tokens.weight"] == sizes["lm_head.weight"] == (32000, 8192)
    assert sizes["model.layers.47.self_attn.k_proj.weight"] == (1024, 8192)
    assert sizes["model.layers.47.mlp.down_proj.weight"] == (8192, 22016)
    assert sum(np.prod(shape) for shape in sizes.values()) == 33743970304


def test_layouts_know_their_own_names(config, ours):
    given = {
        "hf": golden(),
        "mindformers": as_mindformers(golden()),
        "meta": dict(stream(META.save(Memory(ours), config))),
        "native": ours,
    }
    for layout, arrays in given.items():
        assert hub.layout_of(SPEC, config, Memory(arrays)) == layout
        table = table_of(SPEC, layout)
        assert isinstance(table, Native) == (layout == "native")
        assert_same(table.load(Memory(arrays), config), ours)


def test_names_of_another_model_are_refused(config):
    others = {"transformer.h.0.attn.c_attn.weight": np.zeros((2, 2)), "x": np.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        hub.layout_of(SPEC, config, Memory(others, "file"))
    (line,) = caught.value.problems
    assert line.startswith("file: holds no name of a llama model (it begins with transformer.h.0")
    assert "the layouts hf, mindformers, meta, native are known" in line
    with pytest.raises(CheckpointError, match=r"'megatron': lm_llama has no such layout; use one"):
        table_of(SPEC, "megatron")


# Files.


def directory(path, arrays, limit=None, case="codellama"):
    path.mkdir()
    (path / "config.json").write_text((GOLDENS / case / "config.json").read_text())
    tensorfile.write_sharded(path, arrays, limit)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_of_every_type_and_in_shards(tmp_path, dtype, ours):
    narrow = Cast(Memory(golden()), dtype)
    folder = directory(tmp_path / "m", narrow, 20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    found = dict(stream(hub.resolve(folder).tensors()))
    assert_same(found, Cast(Memory(ours), dtype))
    assert (found["norm.weight"].dtype == BFLOAT16) == (dtype == "bfloat16")
    loaded = tiny.weights(AutoModel.from_pretrained(folder))
    assert_same(loaded, Cast(Memory(found), "float32"))


def test_a_model_may_be_kept_in_bfloat16(tmp_path, ours):
    folder = directory(tmp_path / "m", Cast(Memory(golden()), "bfloat16"))
    model = AutoModel.from_pretrained(folder, param_init_type="bfloat16")
    expected = dict(stream(Cast(Memory(ours), "bfloat16")))
    found = dict(stream(io.Parameters(model.named_parameters())))
    matrices = [name for name, array in found.items() if array.dtype == BFLOAT16]
    assert len(matrices) == 2 + 7 * 2  # The norms stay wider.
    assert_same({n: found[n] for n in matrices}, {n: expected[n] for n in matrices})


def convert(*words):
    return main(["convert", "llama", *map(str, words)])


LAYOUTS = ("native", "hf", "mindformers", "meta")


@pytest.mark.parametrize("way", list(product(LAYOUTS, LAYOUTS)), ids="-".join)
def test_every_way_back_gives_the_same_bytes(tmp_path, way):
    source = directory(tmp_path / "0", Memory(golden()))
    for number, layout in enumerate((*way, "hf")):
        target = tmp_path / f"{number + 1}"
        assert convert("--input", source, "--output", target, "--format", layout) == 0
        source = target
    assert_same(io.open_directory(source), golden())
    theirs, given = (json.loads((tmp_path / n / "config.json").read_text()) for n in "30")
    lost = {"max_position_embeddings", "initializer_range"} if "meta" in way else set()
    for key in LlamaConfig.from_hf(given).to_hf().keys() - lost - {"torch_dtype"}:
        assert theirs[key] == given.get(key, LlamaConfig.from_hf(given).to_hf()[key]), key


def test_the_words_of_the_model_card(tmp_path, capsys):
    """A directory of Hugging Face to one .ckpt file; it is what the recorded weights are."""
    source = directory(tmp_path / "hf", Memory(golden()))
    words = ["--torch_ckpt_dir", source, "--mindspore_ckpt_path"]
    assert convert(*words, tmp_path / "out" / "codellama.ckpt") == 0
    assert convert(*words, tmp_path / "out" / "named") == 0
    assert "layout mindformers" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["codellama.ckpt", "named.ckpt"]
    for name in names:
        found = dict(stream(io.open_file(tmp_path / "out" / name)))
        assert_same(found, as_mindformers(golden()))
    assert convert(*words, tmp_path / "out" / "named.ckpt") == 2
    assert "named.ckpt: is there already; it is replaced only if asked" in capsys.readouterr().err
    assert convert(*words, tmp_path / "out" / "named.ckpt", "--overwrite") == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "x.ckpt", "--format", "hf"], "format: is hf and x.ckpt a .ckpt file"),
        (["--output", "x"], "format: is missing"),
        (["--output", "x.ckpt", "--max_shard_size", "1GB"], "layout mindformers is a single file"),
    ],
)
def test_outputs_that_do_not_fit(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert convert("--input", GOLDENS / "codellama", *flags) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Folders of ranks, as MindFormers lays them out.


def test_a_whole_model_in_the_folder_of_rank_0(tmp_path, config, ours, capsys):
    """The model card's `checkpoint_dir/rank_0/xxx.ckpt`."""
    ckpt.write(tmp_path / "rank_0" / "xxx.ckpt", Memory(as_mindformers(golden())))
    assert_same(tiny.weights(AutoModel.from_pretrained(tmp_path, config=config)), ours)
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--format", "native"]
    assert convert(*words) == 2
    assert "does not say which model it is" in capsys.readouterr().err
    assert convert(*words, "--config", GOLDENS / "codellama") == 0
    assert_same(io.open_directory(tmp_path / "out"), ours)


def test_parts_of_others_need_their_strategy(tmp_path, config, ours):
    from lm_core.checkpoint.source import Recut

    theirs = as_mindformers(golden())
    theirs = {n: a for n, a in theirs.items() if a.shape[0] % 2 == 0}
    cut = {n: strategy.Item((1, 2), (0,) + (-1,) * (a.ndim - 1)) for n, a in theirs.items()}
    odd = {n: a for n, a in as_mindformers(golden()).items() if n not in theirs}
    cut |= {n: strategy.Item((1, 2), (-1,) * a.ndim) for n, a in odd.items()}
    for rank in range(2):
        halves = {name: np.split(array, 2)[rank] for name, array in theirs.items()}
        ckpt.write(tmp_path / "in" / f"rank_{rank}" / "a.ckpt", Memory(halves | odd))
    (tmp_path / "strategy_rank_0.json").write_text(strategy.to_json(cut, 0))
    with pytest.raises(CheckpointError, match="holds the parts of 2 ranks and not how they are"):
        AutoModel.from_pretrained(tmp_path / "in", config=config)
    recut = Recut(auto_trans=True, scratch=tmp_path / "new", src_strategy=str(tmp_path))
    model = AutoModel.from_pretrained(tmp_path / "in", config=config, recut=recut)
    assert_same(tiny.weights(model), ours)


# The configuration.


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_there_and_back(preset):
    config = PRESETS[preset]
    back = LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf())))
    assert (back.kv_heads, back.ffn_size, back.rope) == (
        config.kv_heads, config.ffn_size, config.rope
    )  # fmt: skip
    for key in ("vocab_size", "hidden_size", "num_layers", "num_heads", "theta", "rms_norm_eps"):
        assert getattr(back, key) == getattr(config, key)
    assert back.trained_positions == config.trained_positions
    assert LlamaConfig.from_hf(back.to_hf()) == back


def test_the_published_configuration():
    """Of codellama/CodeLlama-34b-hf."""
    theirs = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 8192, "initializer_range": 0.02,
        "intermediate_size": 22016, "max_position_embeddings": 16384, "model_type": "llama",
        "num_attention_heads": 64, "num_hidden_layers": 48, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 32000,
    }  # fmt: skip
    config = LlamaConfig.from_hf(theirs)
    assert shapes(config) == shapes(PRESETS["codellama_34b"])
    assert (config.theta, config.seq_length) == (1e6, 16384)
    assert config.rms_norm_eps == PRESETS["codellama_34b"].rms_norm_eps


def test_unsupported_options_are_refused_together_by_name():
    given = {
        "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True, "head_dim": 96,
        "quantization_config": {"bits": 4}, "rope_scaling": {"rope_type": "longrope"},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        LlamaConfig.from_hf(given)
    keys = {line.partition(":")[0] for line in caught.value.problems}
    assert keys == {*given, "rope_scaling.type"} - {"rope_scaling"}


def test_a_preset_over_published_weights_says_nothing(tmp_path, caplog):
    """Sizes that are said in another way are the same network."""
    config = PRESETS["llama_tiny"].copy(n_kv_heads=None)
    model = tiny.model(SPEC, n_kv_heads=None)
    folder = tiny.write_hf(model, SPEC, tmp_path / "m")
    hub.resolve(folder, config=config)
    assert not caplog.text
    hub.resolve(folder, config=config.copy(rms_norm_eps=1e-6))
    assert "rms_norm_eps is 1e-05, but 1e-06 is used" in caplog.text


def test_published_weights_are_named_for_the_sizes_that_have_some():
    assert set(HF.published) == set(PRESETS) - {"llama_tiny"}
    assert all(hub.HUB_ID.fullmatch(name) for name in HF.published.values())
    assert AutoConfig.from_pretrained("codellama_34b") == PRESETS["codellama_34b"]
