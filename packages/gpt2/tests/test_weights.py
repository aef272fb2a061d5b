"""GPT-2's weight tables and its Hugging Face configuration, against recorded checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm_core.checkpoint import hub
from lm_core.checkpoint.layout import Memory, Native, stream
from lm_core.checkpoint.tensorfile import SafetensorsFile
from lm_core.errors import CheckpointError, ConfigError
from lm_core.testing.parity import assert_same
from lm_gpt2.config import PRESETS, Gpt2Config
from lm_gpt2.weights import TABLES, shapes

CASE = Path(__file__).parent / "goldens" / "gpt2"
HF, MINDFORMERS = TABLES["hf"], TABLES["mindformers"]


def golden(name="model.safetensors"):
    tensors = SafetensorsFile(CASE / name)
    return {key: array for key, array in stream(tensors) if not key.endswith(".attn.bias")}


@pytest.fixture(scope="module")
def config():
    return Gpt2Config.from_hf(json.loads((CASE / "config.json").read_text()))


@pytest.fixture(scope="module")
def ours(config):
    return dict(stream(HF.load(Memory(golden()), config)))


@pytest.mark.parametrize("name", ["model.safetensors", "model_prefixed.safetensors"])
def test_recorded_files_there_and_back(name, config, ours):
    loaded = HF.load(SafetensorsFile(CASE / name), config)
    assert {n: spec.shape for n, spec in loaded.specs.items()} == shapes(config)
    assert_same(loaded, ours)
    assert_same(HF.save(loaded, config), golden(name))


def test_the_fused_matrix_is_cut_into_query_key_value(ours):
    fused, bias = golden()["h.1.attn.c_attn.weight"], golden()["h.1.attn.c_attn.bias"]
    for i, name in enumerate("qkv"):
        part = slice(32 * i, 32 * (i + 1))
        assert np.array_equal(ours[f"layers.1.attention.{name}.weight"], fused[:, part])
        assert np.array_equal(ours[f"layers.1.attention.{name}.bias"], bias[part])
    assert np.array_equal(ours["layers.0.mlp.down.weight"], golden()["h.0.mlp.c_proj.weight"])


def test_mindformers_as_its_converter_makes_it(config, ours):
    """The published script: split on the last axis, transpose each part; all else as it is."""
    theirs = golden()
    expected = {
        "backbone.embedding.word_embedding.embedding_table": theirs["wte.weight"],
        "backbone.embedding.position_embedding.embedding_table": theirs["wpe.weight"],
        "backbone.layernorm.gamma": theirs["ln_f.weight"],
        "backbone.layernorm.beta": theirs["ln_f.bias"],
    }
    for i in range(2):
        their, our = f"h.{i}.", f"backbone.blocks.{i}."
        for n in "12":
            expected[f"{our}layernorm{n}.gamma"] = theirs[f"{their}ln_{n}.weight"]
            expected[f"{our}layernorm{n}.beta"] = theirs[f"{their}ln_{n}.bias"]
        weights = np.split(theirs[f"{their}attn.c_attn.weight"], 3, -1)
        biases = np.split(theirs[f"{their}attn.c_attn.bias"], 3)
        for n, weight, bias in zip("123", weights, biases, strict=True):
            expected[f"{our}attention.dense{n}.weight"] = weight.T
            expected[f"{our}attention.dense{n}.bias"] = bias
        pairs = {"attn.c_proj": "attention.projection", "mlp.c_fc": "output.mapping"}
        for old, new in (pairs | {"mlp.c_proj": "output.projection"}).items():
            for kind in ("weight", "bias"):
                expected[f"{our}{new}.{kind}"] = theirs[f"{their}{old}.{kind}"]
    saved = dict(stream(MINDFORMERS.save(Memory(ours), config)))
    assert_same(saved, expected)
    assert_same(MINDFORMERS.load(Memory(saved), config), ours)


def test_optimizer_state_of_a_mindformers_checkpoint_is_left_out(config, ours):
    saved = dict(stream(MINDFORMERS.save(Memory(ours), config)))
    state = {
        f"{kind}.{name}": array for kind in ("adam_m", "adam_v") for name, array in saved.items()
    }
    state |= {name: np.zeros(1) for name in ("global_step", "scale_sense", "epoch_num")}
    state["backbone.blocks.0.attention.key_past"] = np.zeros((1, 4, 32, 8), np.float16)
    assert_same(MINDFORMERS.load(Memory(saved | state), config), ours)
    with pytest.raises(CheckpointError, match="1 unknown tensor: adam_x"):
        MINDFORMERS.load(Memory(saved | {"adam_x": np.zeros(1)}), config)


def test_a_tied_head_in_the_file(config, ours):
    assert_same(
        dict(
            stream(HF.load(Memory({**golden(), "lm_head.weight": golden()["wte.weight"]}), config))
        ),
        ours,
    )
    other = {**golden(), "lm_head.weight": golden()["wte.weight"] + 1}
    with pytest.raises(CheckpointError, match="lm_head.weight differs from wte.weight"):
        dict(stream(HF.load(Memory(other), config)))
    untied = config.copy(tie_word_embeddings=False)
    loaded = dict(stream(HF.load(Memory(other), untied)))
    assert np.array_equal(loaded["head.weight"], other["lm_head.weight"].T)
    back = dict(stream(HF.save(HF.load(Memory(other), untied), untied)))
    assert_same(back, other)
    with pytest.raises(CheckpointError, match=r"1 missing tensor: lm_head\.weight"):
        HF.load(Memory(golden()), untied)


def test_a_report_with_all_names(config):
    arrays = golden()
    for name in ("h.0.ln_1.bias", "h.1.mlp.c_fc.weight"):
        del arrays[name]
    arrays |= {"h.2.ln_1.bias": np.zeros(32), "classifier.weight": np.zeros(2)}
    arrays["wpe.weight"] = np.zeros((16, 32), np.float32)
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(arrays, "file"), config)
    missing, unknown, wrong = caught.value.problems
    assert "2 missing tensors: h.0.ln_1.bias, h.1.mlp.c_fc.weight;" in missing
    assert "2 unknown tensors: h.2.ln_1.bias, classifier.weight;" in unknown
    assert "wpe.weight is [16, 32] and must be [32, 32]" in wrong


def test_more_and_fewer_layers_than_configured(config):
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(golden()), config.copy(num_layers=1))
    (line,) = caught.value.problems
    assert line.count("h.1.") == 3 and "12 unknown" in line and "and 9 more;" in line
    with pytest.raises(CheckpointError) as caught:
        HF.load(Memory(golden()), config.copy(num_layers=3))
    (line,) = caught.value.problems
    assert line.count("h.2.") == 3 and "12 missing" in line and "and 9 more;" in line


def test_the_published_124m_has_the_published_shapes():
    config = PRESETS["gpt2"]
    ours = {n: np.empty(s, np.dtype([])) for n, s in shapes(config).items()}
    theirs = {n: s.shape for n, s in HF.save(Memory(ours), config, prefix="").specs.items()}
    assert len(theirs) == 148
    assert theirs["wte.weight"] == (50257, 768) and theirs["wpe.weight"] == (1024, 768)
    assert theirs["h.11.attn.c_attn.weight"] == (768, 2304)
    assert theirs["h.11.mlp.c_fc.weight"] == (768, 3072)
    assert sum(np.prod(s) for s in theirs.values()) == 124439808


def test_layouts_know_their_own_names(config, ours):
    given = {
        "hf": golden(),
        "mindformers": dict(stream(MINDFORMERS.save(Memory(ours), config))),
        "native": ours,
    }
    tables = {**TABLES, "native": Native(shapes)}
    for layout, arrays in given.items():
        assert_same(tables[layout].load(Memory(arrays), config), ours)
        counts = {name: table.recognised(arrays) for name, table in TABLES.items()}
        assert counts == {name: len(arrays) * (name == layout) for name in TABLES}


# The configuration.


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_there_and_back(preset):
    config = PRESETS[preset]
    theirs = json.loads(json.dumps(config.to_hf()))
    back = Gpt2Config.from_hf(theirs)
    same_fields = {k: v for k, v in back if k not in ("parallel_config", "max_position_embeddings")}
    assert same_fields == {k: v for k, v in config if k in same_fields}
    assert back.positions == config.positions
    assert Gpt2Config.from_hf(back.to_hf()) == back


def test_the_published_configuration():
    """Of openai-community/gpt2, with everything that it says and nobody needs."""
    theirs = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    assert Gpt2Config.from_hf(theirs) == PRESETS["gpt2"]
    assert Gpt2Config.from_hf({"model_type": "gpt2"}) == PRESETS["gpt2"]


def test_cerebras_13b():
    theirs = {"n_embd": 5120, "n_head": 40, "n_layer": 40, "n_inner": 20480, "n_positions": 2048}
    theirs |= {"activation_function": "gelu", "attn_pdrop": 0.0, "scale_attn_weights": True}
    config = Gpt2Config.from_hf(theirs)
    assert (config.hidden_act, config.expand_ratio) == ("gelu_exact", 4)
    assert shapes(config) == shapes(PRESETS["gpt2_13b"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu", "gelu_exact"),
        ("quick_gelu", "fast_gelu"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("swish", "silu"),
    ],
)
def test_activations(theirs, ours):
    config = Gpt2Config.from_hf({"activation_function": theirs})
    assert config.hidden_act == ours
    assert Gpt2Config.from_hf(config.to_hf()).hidden_act == ours


def test_unsupported_options_are_refused_together_by_name():
    with pytest.raises(ConfigError) as caught:
        Gpt2Config.from_hf(
            {
                "scale_attn_weights": False,
                "scale_attn_by_inverse_layer_idx": True,
                "add_cross_attention": True,
                "quantization_config": {"bits": 4},
                "activation_function": "mish",
                "n_inner": 1000,
            }
        )
    keys = [line.partition(":")[0] for line in caught.value.problems]
    assert keys == [
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
        "quantization_config",
        "activation_function",
        "n_inner",
    ]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"n_embd": "768"}, "hidden_size"),
        ({"n_inner": "big"}, "n_inner"),
        ({"n_layer": 0}, "num_layers"),
        ({"n_head": 7}, "num_heads"),
        ({"eos_token_id": 60000}, "eos_token_id"),
        ({"activation_function": ["gelu"]}, "activation_function"),
    ],
)
def test_wrong_values_are_one_line(values, key):
    with pytest.raises(ConfigError) as caught:
        Gpt2Config.from_hf(values)
    assert any(line.startswith(f"{key}: ") for line in caught.value.problems)


def test_token_ids():
    config = Gpt2Config.from_hf({"vocab_size": 50258, "eos_token_id": 50256, "pad_token_id": 50257})
    assert (config.eos_token_id, config.pad_token_id) == (50256, 50257)
    assert Gpt2Config.from_hf(config.to_hf()) == config
    config = Gpt2Config.from_hf({"eos_token_id": [5, 6], "bos_token_id": None})
    assert (config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ([5, 6], 5, None)
    assert Gpt2Config.from_hf(config.to_hf()) == config


def test_what_hugging_face_lacks_is_refused():
    with pytest.raises(ConfigError, match="post_layernorm_residual: is True"):
        PRESETS["gpt2_tiny"].copy(post_layernorm_residual=True).to_hf()


def test_published_weights_are_named_for_the_sizes_that_have_some():
    assert set(HF.published) == set(PRESETS) - {"gpt2_52b", "gpt2_tiny"}
    assert all(hub.HUB_ID.fullmatch(name) for name in HF.published.values())
