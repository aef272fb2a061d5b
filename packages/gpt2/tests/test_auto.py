"""AutoConfig, AutoModel, AutoTokenizer and save_pretrained on real (tiny) GPT-2 models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm_core import AutoConfig, AutoModel, AutoTokenizer
from lm_core import auto as auto_module
from lm_core import log as log_module
from lm_core.auto import empty_model
from lm_core.checkpoint import ckpt, io, tensorfile
from lm_core.checkpoint.atomic import MANIFEST, verify
from lm_core.checkpoint.layout import Cast, Memory, cast, stream
from lm_core.errors import CheckpointError, ConfigError, GenerationError, LmError
from lm_core.parallel import context as context_module
from lm_core.parallel.context import ParallelContext
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same, differences
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.config import PRESETS, Gpt2Config
from lm_gpt2.tokenizer import Gpt2Tokenizer

CASE = Path(__file__).parent / "goldens" / "gpt2"
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": 16, "vocab_size": 50}


@pytest.fixture(scope="module")
def model():
    return tiny.model(SPEC, **SMALL)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def logits(model):
    from mindspore import Tensor

    return model(Tensor(tiny.token_ids(50, (2, 8)))).asnumpy()


# Configurations.


def test_config_of_a_preset():
    config = AutoConfig.from_pretrained("gpt2_xl", seq_length=512, use_past=False)
    assert (config.hidden_size, config.seq_length, config.use_past) == (1600, 512, False)
    config.hidden_size = 32
    assert AutoConfig.from_pretrained("gpt2_xl").hidden_size == PRESETS["gpt2_xl"].hidden_size
    assert set(PRESETS) <= set(AutoConfig.show_support_list())


def test_config_of_a_directory(saved):
    assert AutoConfig.from_pretrained(CASE).vocab_size == 97
    wanted = tiny.config(SPEC, **SMALL, top_k=3, checkpoint_name_or_path=str(saved))
    assert AutoConfig.from_pretrained(saved, top_k=3) == wanted


def test_config_of_a_run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {model_config: {preset: gpt2_tiny, seq_length: 77, top_k: 9}}")
    config = AutoConfig.from_pretrained(path, top_p=0.5)
    assert (config.hidden_size, config.seq_length) == (64, 77)
    assert (config.top_k, config.top_p) == (9, 0.5)


def test_wrong_changes_and_names():
    with pytest.raises(ConfigError, match="num_layer: unknown key"):
        AutoConfig.from_pretrained("gpt2", num_layer=3)
    with pytest.raises(CheckpointError, match="did you mean the preset gpt2_tiny"):
        AutoConfig.from_pretrained("gpt2_tny")
    with pytest.raises(LmError, match=r"nowhere\.yaml"):
        AutoConfig.from_pretrained("nowhere.yaml")


# Models.


def test_saved_and_loaded(saved, model):
    loaded = AutoModel.from_pretrained(saved)
    assert_same(tiny.weights(loaded), tiny.weights(model))
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert loaded.config.copy(checkpoint_name_or_path="") == model.config
    assert loaded.config.checkpoint_name_or_path == str(saved)
    assert sorted(os.listdir(saved)) == ["config.json", MANIFEST, "model.safetensors"]


def test_loading_draws_no_random_numbers(saved, monkeypatch):
    from lm_core.nn import init

    def forbidden(*args):
        raise AssertionError("initial values were drawn for weights that are overwritten")

    monkeypatch.setattr(init, "normal", forbidden)
    AutoModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "model_prefixed.safetensors"])
def test_hugging_face_files(name):
    loaded = tiny.weights(AutoModel.from_pretrained(CASE / name))
    prefix = "transformer." if "prefixed" in name else ""
    table = tensorfile.SafetensorsFile(CASE / name).read(f"{prefix}wte.weight")
    assert np.array_equal(loaded["embedding.weight"], table.T)


@pytest.mark.parametrize("layout", ["hf", "mindformers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_bare_files_with_a_configuration(model, tmp_path, layout, suffix):
    theirs = SPEC.tables[layout].save(Memory(tiny.weights(model)), model.config)
    writer = ckpt.write if suffix == ".ckpt" else tensorfile.write
    writer(tmp_path / f"w{suffix}", theirs)
    with pytest.raises(CheckpointError, match="does not say which model it is"):
        AutoModel.from_pretrained(tmp_path / f"w{suffix}")
    loaded = AutoModel.from_pretrained(tmp_path / f"w{suffix}", config=tiny.config(SPEC, **SMALL))
    assert_same(tiny.weights(loaded), tiny.weights(model))


def test_changes_on_the_way(saved, model):
    loaded = AutoModel.from_pretrained(saved, seq_length=8, max_position_embeddings=16, top_k=7)
    assert (loaded.config.seq_length, loaded.config.top_k) == (8, 7)
    assert_same(tiny.weights(loaded), tiny.weights(model))
    with pytest.raises(CheckpointError, match=r"position_embedding\.weight is \[16, 32\] and must"):
        AutoModel.from_pretrained(saved, seq_length=8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_load_into_wide_ones(model, tmp_path, dtype):
    tensors = Cast(Memory(tiny.weights(model)), dtype)
    io.save_native(tmp_path / "m", "gpt2", model.config, tensors)
    loaded = tiny.weights(AutoModel.from_pretrained(tmp_path / "m"))
    for name, array in stream(tensors):
        assert np.array_equal(loaded[name], cast(array, np.dtype("<f4"))), name
    narrow = AutoModel.from_pretrained(tmp_path / "m", param_init_type=dtype)
    narrow.save_pretrained(tmp_path / "again")
    again = io.open_directory(tmp_path / "again")
    norms = [name for name in again.specs if "norm" in name]
    narrowed = tensors.specs.keys() - set(norms)
    assert_same({n: again.read(n) for n in narrowed}, {n: tensors.read(n) for n in narrowed})


def test_presets_never_become_random_weights():
    with pytest.raises(CheckpointError) as caught:
        AutoModel.from_pretrained("gpt2")
    (line,) = caught.value.problems
    assert "pip install 'lm-core[hub]' to download openai-community/gpt2" in line
    assert "AutoModel.from_config(AutoConfig.from_pretrained('gpt2'))" in line
    with pytest.raises(CheckpointError, match="a size without weights"):
        AutoModel.from_pretrained("gpt2_tiny")


def test_a_report_before_anything_is_built(saved, monkeypatch):
    tensors = dict(stream(io.open_directory(saved)))
    del tensors["norm.bias"], tensors["layers.1.mlp.up.bias"]
    tensors["extra"] = np.zeros(3)
    shutil.rmtree(saved)
    io.save_native(saved, "gpt2", tiny.config(SPEC, **SMALL), Memory(tensors))
    monkeypatch.setattr(auto_module, "empty_model", None)
    with pytest.raises(CheckpointError) as caught:
        AutoModel.from_pretrained(saved)
    missing, unknown = caught.value.problems
    assert "layers.1.mlp.up.bias, norm.bias" in missing and "extra" in unknown


def test_damaged_weights_are_never_loaded(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not as it was written"):
        AutoModel.from_pretrained(saved)


def test_from_config_says_that_weights_are_random(caplog):
    log_module._noticed.clear()
    config = tiny.config(SPEC, **SMALL)
    first = AutoModel.from_config(config)
    assert "random weights (seed 0)" in caplog.text
    assert_same(tiny.weights(first), tiny.weights(AutoModel.from_config(config)))
    assert differences(tiny.weights(first), tiny.weights(AutoModel.from_config(config, seed=1)))
    config.top_k = 1
    assert first.config.top_k != 1


def test_from_config_takes_what_auto_config_takes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {model_config: {preset: gpt2_tiny, num_layers: 1}}")
    assert AutoModel.from_config(path).config.num_layers == 1
    assert AutoModel.from_config("gpt2_tiny", num_layers=1).config.hidden_size == 64


def test_a_configuration_of_weights_leads_to_them(saved, model, tmp_path):
    """And a directory that says what a model is, and has none, to random ones."""
    built = AutoModel.from_config(AutoConfig.from_pretrained(saved))
    assert_same(tiny.weights(built), tiny.weights(model))
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "config.json").write_bytes((saved / "config.json").read_bytes())
    config = AutoConfig.from_pretrained(tmp_path / "sizes")
    assert config.checkpoint_name_or_path == ""
    assert differences(tiny.weights(AutoModel.from_config(config, seed=1)), tiny.weights(model))


def test_from_config_loads_what_the_configuration_names(saved, model):
    config = AutoConfig.from_pretrained("gpt2_tiny", **SMALL)
    config.checkpoint_name_or_path = str(saved)
    assert_same(tiny.weights(AutoModel.from_config(config)), tiny.weights(model))
    config.checkpoint_name_or_path = "gpt2"
    with pytest.raises(CheckpointError, match="gpt2: is a preset, a size without weights"):
        AutoModel.from_config(config)
    config.checkpoint_name_or_path = "/no/such/place"
    with pytest.raises(CheckpointError, match="/no/such/place: no such file or directory"):
        AutoModel.from_config(config)


def test_loading_into_a_model_that_has_run(saved, model):
    other = tiny.model(SPEC, seed=5, **SMALL)
    before = logits(other)
    source = auto_module.load_weights(other, saved)
    assert source.path == saved
    assert_same(tiny.weights(other), tiny.weights(model))
    assert np.array_equal(logits(other), logits(model)) and not np.array_equal(
        before, logits(other)
    )


def test_parameters_that_may_be_absent_keep_their_values(saved):
    tensors = dict(stream(io.open_directory(saved)))
    del tensors["norm.bias"]
    io.save_native(saved, "gpt2", tiny.config(SPEC, **SMALL), Memory(tensors))
    other = tiny.model(SPEC, seed=5, **SMALL)
    before = tiny.weights(other)["norm.bias"].copy()
    auto_module.load_weights(other, saved, absent=["norm.bias"])
    assert np.array_equal(tiny.weights(other)["norm.bias"], before)
    with pytest.raises(CheckpointError, match=r"1 missing tensor: norm\.bias"):
        auto_module.load_weights(other, saved)


def test_an_untied_head(tmp_path):
    model = tiny.model(SPEC, tie_word_embeddings=False, **SMALL)
    model.save_pretrained(tmp_path / "m")
    loaded = AutoModel.from_pretrained(tmp_path / "m")
    assert "head.weight" in tiny.weights(loaded)
    assert_same(tiny.weights(loaded), tiny.weights(model))
    tiny.write_hf(model, SPEC, tmp_path / "hf")
    assert_same(tiny.weights(AutoModel.from_pretrained(tmp_path / "hf")), tiny.weights(model))


# Saving.


def test_saving_replaces_and_keeps_what_is_not_ours(model, tmp_path):
    target = tmp_path / "m"
    model.save_pretrained(target, max_shard_size="50KB")
    assert (target / tensorfile.INDEX).exists()
    assert_same(tiny.weights(AutoModel.from_pretrained(target)), tiny.weights(model))
    (target / "notes.txt").write_text("mine")
    model.save_pretrained(target)
    names = ["config.json", MANIFEST, "model.safetensors", "notes.txt"]
    assert sorted(os.listdir(target)) == names and verify(target) == []
    assert_same(tiny.weights(AutoModel.from_pretrained(target)), tiny.weights(model))


def test_saving_over_published_weights_is_refused(model, tmp_path):
    target = tiny.write_hf(model, SPEC, tmp_path / "hf")
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds weights without"):
        model.save_pretrained(target)
    assert (target / "model.safetensors").read_bytes() == before


def test_saving_where_one_cannot_write(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "m")
    with pytest.raises(CheckpointError, match="is no size"):
        model.save_pretrained(tmp_path / "m", max_shard_size="lots")
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def tokenizer_files(tmp_path):
    folder = tmp_path / "tokenizer"
    vocab, merges = train_bpe([tiny.text(50)], 300)
    Gpt2Tokenizer(vocab, merges).save_pretrained(folder)
    for name in os.listdir(folder):
        if name not in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    return folder


def test_a_tokenizer_is_saved_and_found(model, tmp_path, tokenizer_files):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
    ids = tokenizer("the path")["input_ids"]
    settings = {"max_new_tokens": 5, "seed": None}
    model.save_pretrained(tmp_path / "m", tokenizer=tokenizer, generation_config=settings)
    assert {"vocab.json", "merges.txt", "generation_config.json"} <= set(os.listdir(tmp_path / "m"))
    assert json.loads((tmp_path / "m/generation_config.json").read_text()) == {"max_new_tokens": 5}
    assert verify(tmp_path / "m") == []
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again("the path")["input_ids"] == ids and again.decode(ids) == "the path"
    again.save_pretrained(tmp_path / "m")
    assert verify(tmp_path / "m") == []


def test_a_generation_config_object(model, tmp_path):
    from lm_core import GenerationConfig

    model.save_pretrained(tmp_path / "m", generation_config=GenerationConfig(top_k=4))
    assert json.loads((tmp_path / "m/generation_config.json").read_text())["top_k"] == 4


def test_tokenizers_of_nothing(tmp_path, tokenizer_files):
    with pytest.raises(CheckpointError, match="gpt2: is a preset and has no tokenizer files"):
        AutoTokenizer.from_pretrained("gpt2")
    (tokenizer_files / "merges.txt").unlink()
    with pytest.raises(LmError, match=r"merges\.txt missing"):
        AutoTokenizer.from_pretrained(tokenizer_files)
    with pytest.raises(LmError, match="no such file or directory"):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")


def test_models_are_for_the_place_that_was_taken(model, saved, monkeypatch):
    monkeypatch.setattr(context_module, "_place", ParallelContext(model_parallel=2, rank=1))
    whole, part = tiny.weights(model), tiny.weights(AutoModel.from_pretrained(saved))
    up = "layers.0.mlp.up.weight"
    np.testing.assert_array_equal(part[up], np.split(whole[up], 2, 1)[1])
    fresh = AutoModel.from_config(Gpt2Config(**SMALL))
    assert fresh.context.tp_rank == 1
    alone = AutoModel.from_pretrained(saved, context=ParallelContext.local())
    assert_same(tiny.weights(alone), tiny.weights(model))


def test_a_part_of_a_model_is_no_model(tmp_path):
    """`from_pretrained` would take the directory for a whole one."""
    part = empty_model(Gpt2Config(**SMALL), context=ParallelContext(model_parallel=2))
    with pytest.raises(CheckpointError, match="this process holds a part of the model"):
        part.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_pipeline_does_not_generate():
    context = ParallelContext(pipeline_stage=2, micro_batch_num=2)
    stage = empty_model(Gpt2Config(**SMALL), context=context)
    with pytest.raises(GenerationError, match="pipeline_stage: is 2; must be 1"):
        stage.generate([1, 2])


# Costs.

PEAK = """
import sys
from pathlib import Path
def high():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024
import lm_gpt2.model
from lm_core.auto import AutoModel
from lm_core.parallel import backend
backend.setup()
before = high()
model = AutoModel.from_pretrained(sys.argv[1])
loaded = high()
model.save_pretrained(sys.argv[2])
print(loaded - before, high() - loaded)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_the_model_and_one_tensor(tmp_path):
    config = Gpt2Config(vocab_size=2000, hidden_size=512, num_layers=14, num_heads=8, seq_length=64)
    nothing = {n: np.zeros(s, np.float32) for n, s in SPEC.tables["hf"].shapes(config).items()}
    size = sum(array.nbytes for array in nothing.values())
    largest = max(array.nbytes for array in nothing.values())
    assert 170e6 < size < 200e6
    theirs = SPEC.tables["hf"].save(Memory(nothing), config)
    (tmp_path / "hf").mkdir()
    tensorfile.write(tmp_path / "hf" / "model.safetensors", theirs)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config.to_hf()))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "hf"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    load, save = map(int, done.stdout.split())
    assert load < size + 2 * largest + 25e6, (load, size, largest)
    assert save < 2 * largest + 40e6, (save, largest)
    written, read = (AutoModel.from_pretrained(tmp_path / name) for name in ("out", "hf"))
    assert_same(tiny.weights(written), tiny.weights(read))
