"""What names mean, with a small made-up model family installed."""

import json
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from lm_core import spec as registry
from lm_core.checkpoint import ckpt, hub, io, tensorfile
from lm_core.checkpoint.atomic import MANIFEST
from lm_core.checkpoint.layout import Memory, Table, Transpose
from lm_core.config.model import ModelConfig
from lm_core.config.section import Positive
from lm_core.errors import CheckpointError, ConfigError
from lm_core.spec import ModelSpec
from lm_core.testing.parity import assert_same


class ToyConfig(ModelConfig):
    vocab_size: Positive = 7
    hidden_size: Positive = 4
    num_layers: Positive = 2
    num_heads: Positive = 2
    seq_length: Positive = 8
    flavour: str = "sweet"

    @classmethod
    def from_hf(cls, values):
        if "bitter" in values:
            raise ConfigError("bitter: is not built; use another checkpoint")
        fields = {"hidden_size": values.get("d", 4), "eos_token_id": values.get("eos_token_id")}
        return cls.parse({**fields, "flavour": values.get("flavour", "sweet")})


class OtherConfig(ToyConfig):
    pass


def shapes(config):
    found = {f"layers.{i}.w.weight": (config.hidden_size, 3) for i in range(config.num_layers)}
    return {"embedding.weight": (config.vocab_size, config.hidden_size), **found}


HF = [("toy.emb", "embedding.weight"), ("toy.{}.w", "layers.{}.w.weight", Transpose())]
MINDFORMERS = [("backbone.emb", "embedding.weight"), ("backbone.{}.w", "layers.{}.w.weight")]


def family(name, config_class, hf_type):
    return ModelSpec(
        name=name,
        config_class=config_class,
        presets={f"{name}_small": config_class(), f"{name}_big": config_class(num_layers=3)},
        build=lambda config, context: None,
        hf_types=(hf_type,),
        tables={
            "hf": Table(
                HF, shapes, name="hf", prefix="toy.", published={f"{name}_small": "toys/small"}
            ),
            "mindformers": Table(MINDFORMERS, shapes, name="mindformers"),
        },
        tokenizer=lambda directory: ("tokenizer of", name, directory),
        configs=Path("nowhere"),
    )


TOY = family("toy", ToyConfig, "toy-hf")
OTHER = family("other", OtherConfig, "other-hf")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda: {"other": OTHER, "toy": TOY})
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture
def weights():
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in shapes(ToyConfig()).items()
    }


def theirs(weights, layout="hf", **options):
    return TOY.tables[layout].save(Memory(weights), ToyConfig(), **options)


def hf(directory, weights, **config):
    directory.mkdir(parents=True)
    values = {"model_type": "toy-hf", **config}
    (directory / "config.json").write_text(json.dumps(values))
    tensorfile.write(directory / "model.safetensors", theirs(weights))
    return directory


def native(directory, weights, **config):
    io.save_native(directory, "toy", ToyConfig(**config), Memory(weights))
    return directory


def problem(call, *parts, **options):
    with pytest.raises(CheckpointError) as caught:
        call(*parts, **options)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_hugging_face_directory(tmp_path, weights):
    source = hub.resolve(hf(tmp_path / "m", weights, flavour="sour"))
    assert (source.spec, source.layout, source.config.flavour) == (TOY, "hf", "sour")
    assert_same(source.tensors(), weights)
    assert_same(hub.resolve(str(tmp_path / "m") + "/").tensors(), weights)


def test_generation_config_is_read_over_it(tmp_path, weights):
    directory = hf(tmp_path / "m", weights, eos_token_id=1)
    settings = {"eos_token_id": [2, 3], "top_k": None, "temperature": 0.0, "do_sample": True}
    settings |= {"transformers_version": "5", "_from_model_config": True, "top_p": 0.5}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    config = hub.resolve(directory).config
    assert (config.eos_token_id, config.do_sample, config.top_p) == ([2, 3], True, 0.5)
    assert config.temperature == 1.0 and config.top_k == 50
    settings = {"eos_token_id": 0, "top_k": 0, "temperature": 0.5, "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    config = hub.resolve(directory).config
    assert (config.eos_token_id, config.top_k, config.temperature) == (0, 0, 0.5)


def test_native_directory(tmp_path, weights):
    source = hub.resolve(native(tmp_path / "m", weights, flavour="sour", eos_token_id=[1, 2]))
    assert (source.spec, source.layout) == (TOY, "native")
    assert source.config == ToyConfig(flavour="sour", eos_token_id=[1, 2])
    assert_same(source.tensors(), weights)


def test_damaged_directories_are_refused_by_name(tmp_path, weights):
    directory = native(tmp_path / "m", weights)
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    assert problem(hub.resolve(directory).tensors).startswith(f"{path}: is not as it was written")
    path.write_bytes(data[:-4])
    assert "must be" in problem(hub.resolve(directory).tensors)
    (directory / MANIFEST).unlink()
    assert "cut off" in problem(hub.resolve(directory).tensors)


def test_a_native_directory_without_manifest_loads_with_a_word(tmp_path, weights, caplog):
    directory = native(tmp_path / "m", weights)
    (directory / MANIFEST).unlink()
    with caplog.at_level("INFO"):
        assert_same(hub.resolve(directory).tensors(), weights)
    assert "are not verified" in caplog.text


def test_mindformers_directory(tmp_path, weights):
    ckpt.write(tmp_path / "toy.ckpt", theirs(weights, "mindformers"))
    assert "does not say which model it is" in problem(hub.resolve, tmp_path)
    source = hub.resolve(tmp_path, config=ToyConfig(flavour="sour"))
    assert (source.layout, source.spec, source.config.flavour) == ("mindformers", TOY, "sour")
    assert_same(source.tensors(), weights)
    io.write_config(tmp_path, "toy", ToyConfig(), {"name": "mindformers", "hf.prefix": ""})
    source = hub.resolve(tmp_path)
    assert source.layout == "mindformers"
    assert_same(source.tensors(), weights)
    assert source.tensors().metadata["hf.prefix"] == ""


@pytest.mark.parametrize("layout", ["native", "hf", "mindformers", "short"])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_files_are_told_by_their_names(tmp_path, weights, layout, suffix):
    given = {
        "native": lambda: Memory(weights),
        "hf": lambda: theirs(weights),
        "short": lambda: theirs(weights, prefix=""),
        "mindformers": lambda: theirs(weights, "mindformers"),
    }[layout]()
    path = tmp_path / f"x.{suffix}"
    (tensorfile if suffix == "safetensors" else ckpt).write(path, given)
    assert "does not say which model it is" in problem(hub.resolve, path)
    source = hub.resolve(path, config=ToyConfig(), spec=TOY)
    assert source.layout == {"short": "hf"}.get(layout, layout)
    assert_same(source.tensors(), weights)
    (tmp_path / "config.json").write_text('{"model_type": "toy-hf", "flavour": "hot"}')
    beside = hub.resolve(path)
    assert beside.config.flavour == "hot"
    assert_same(beside.tensors(), weights)


def test_a_file_of_another_model(tmp_path):
    tensorfile.write(tmp_path / "x.safetensors", Memory({"strange": np.zeros(2)}))
    line = problem(hub.resolve, tmp_path / "x.safetensors", config=ToyConfig())
    assert "holds no name of a toy model (it begins with strange)" in line


def test_a_directory_of_another_family(tmp_path, weights):
    directory = hf(tmp_path / "m", weights)
    assert "is a toy model; a other model is needed" in problem(hub.resolve, directory, spec=OTHER)
    assert "ToyConfig" not in problem(hub.resolve, directory, config=_llama())


def _llama():
    class Llama(ModelConfig):
        vocab_size: Positive = 7
        hidden_size: Positive = 4
        num_layers: Positive = 2
        num_heads: Positive = 2
        seq_length: Positive = 8

    return Llama()


def test_another_configuration_is_used_with_a_warning(tmp_path, weights, caplog):
    directory = hf(tmp_path / "m", weights, flavour="sour")
    given = ToyConfig(num_heads=4)
    source = hub.resolve(directory, config=given)
    assert source.config is given
    assert_same(source.tensors(), weights)
    assert "flavour is 'sour', but 'sweet' is used" in caplog.text
    assert "num_heads is 2, but 4 is used" in caplog.text
    caplog.clear()
    hub.resolve(directory, config=ToyConfig(flavour="sour", seq_length=5))
    assert "is used" not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "must be a JSON object"),
        ("{}", "no installed package knows"),
        ('{"model_type": "bert"}', "no installed package knows 'bert'"),
        ('{"model_type": "toy-hf", "bitter": 1}', "config.json: bitter: is not built"),
        ('{"lm_model": "toy", "flavr": "x"}', "config.json: flavr: "),
        ('{"lm_model": "toy", "hidden_size": "4"}', "config.json: hidden_size: "),
    ],
)
def test_bad_configurations(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    assert words in problem(hub.resolve, tmp_path)


def test_an_unknown_layout(tmp_path, weights):
    io.write_config(tmp_path, "toy", ToyConfig(), {"name": "fancy"})
    ckpt.write(tmp_path / "toy.ckpt", Memory(weights))
    assert "no such layout; use one of native, hf" in problem(hub.resolve(tmp_path).tensors)


def test_an_empty_directory(tmp_path):
    assert "holds no checkpoint" in problem(hub.resolve, tmp_path)


def test_the_newest_good_checkpoint_of_a_run(tmp_path, weights, caplog):
    for step in (5, 10, 9):
        changed = {name: array + step for name, array in weights.items()}
        native(tmp_path / "checkpoint" / "rank_0" / f"step-{step}", changed)
    newest = tmp_path / "checkpoint" / "rank_0" / "step-10"
    (newest.parent / ".step-11.tmp-x-1-a").mkdir()
    (newest.parent / "latest").write_text("step-99")
    for place in (tmp_path, tmp_path / "checkpoint", tmp_path / "checkpoint" / "rank_0"):
        assert hub.resolve(place).path == newest
    (newest / "model.safetensors").write_bytes(b"x")
    source = hub.resolve(tmp_path)
    assert source.path.name == "step-9" and "step-10/model.safetensors" in caplog.text
    assert_same(source.tensors(), {name: array + 9 for name, array in weights.items()})


def test_a_run_of_which_all_is_damaged(tmp_path, weights):
    (native(tmp_path / "step-1", weights) / "config.json").write_text("{}")
    for what in (hub.resolve, hub.tokenizer_directory):
        assert "step-1/config.json: " in problem(what, tmp_path)


def test_a_file_of_a_checkpoint_is_verified_too(tmp_path, weights):
    file = native(tmp_path / "m", weights) / "model.safetensors"
    assert_same(hub.resolve(file).tensors(), weights)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "m/model.safetensors: is not as it was written" in problem(hub.resolve(file).raw)


def test_a_replaced_directory_whose_writer_died(tmp_path, weights):
    directory = native(tmp_path / "m", weights)
    os.rename(directory, tmp_path / ".m.old-host-1-aa")
    assert_same(hub.resolve(directory).tensors(), weights)


def test_presets_have_no_weights(tmp_path):
    source = hub.resolve("toy_big")
    assert source.kind == "preset" and source.config.num_layers == 3
    source.config.num_layers = 9
    assert TOY.presets["toy_big"].num_layers == 3
    line = problem(hub.weights, "toy_big", source)
    assert "a size without weights" in line and "hub" not in line
    assert "AutoModel.from_config(AutoConfig.from_pretrained('toy_big'))" in line
    line = problem(hub.weights, "toy_small", hub.resolve("toy_small"))
    assert "pip install 'lm-core[hub]' to download toys/small" in line
    assert "no weights" in problem(source.raw)


def test_a_directory_named_like_a_preset_wins(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    native(tmp_path / "toy_big", weights)
    assert hub.resolve("toy_big").kind == "directory"


@pytest.mark.parametrize("name", ["toy_smal", "./missing", "/no/where", "x.safetensors", "a/b/c"])
def test_names_of_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_SHOWN", 1)
    line = problem(hub.resolve, name)
    assert line.startswith(f"{name}: no such file or directory, and no preset")
    assert line.endswith(", ...") == (name != "toy_smal")
    assert ("did you mean the preset toy_small?" in line) == (name == "toy_smal")


def test_a_path_in_an_existing_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    assert "no such file" in problem(hub.resolve, "output/modle")


def test_a_hub_id_without_the_client():
    assert "pip install 'lm-core[hub]'" in problem(hub.resolve, "owner/model")


class FakeHub(types.ModuleType):
    """As much of huggingface_hub as is used: a folder on this disk."""

    def __init__(self, directory):
        super().__init__("huggingface_hub")
        self.__spec__ = ModuleSpec("huggingface_hub", None)
        self.directory, self.asked = directory, []

    def snapshot_download(self, repo_id, allow_patterns, ignore_patterns):
        self.asked.append((repo_id, allow_patterns))
        assert ignore_patterns == ["*/*"]
        if repo_id == "toys/gone":
            raise ConnectionError("Could not reach\nthe hub")
        return str(self.directory)


@pytest.fixture
def online(tmp_path, weights, monkeypatch):
    fake = FakeHub(hf(tmp_path / "cache", weights, flavour="hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_hub_ids_are_downloaded(online, weights):
    source = hub.resolve("toys/anything")
    assert source.config.flavour == "hub"
    assert_same(source.tensors(), weights)
    ((name, patterns),) = online.asked
    assert name == "toys/anything" and "*.safetensors" in patterns
    assert not any("bin" in pattern or pattern == "*" for pattern in patterns)


def test_published_weights_of_a_preset_are_downloaded(online, weights):
    source = hub.weights("toy_small", hub.resolve("toy_small"))
    assert online.asked[0][0] == "toys/small"
    assert_same(source.tensors(), weights)
    assert "a size without weights" in problem(hub.weights, "toy_big", hub.resolve("toy_big"))


def test_a_failed_download_is_one_line(online):
    line = problem(hub.resolve, "toys/gone")
    assert line.startswith("toys/gone: cannot be downloaded (Could not reach);")


def test_tokenizers(tmp_path, weights, online):
    directory = native(tmp_path / "m", weights)
    assert hub.tokenizer_directory(directory) == (TOY, directory)
    assert hub.tokenizer_directory(directory / "model.safetensors") == (TOY, directory)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "vocab.json").write_text("{}")
    assert hub.tokenizer_directory(bare) == (None, bare)
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "OtherTokenizerFast"}')
    assert hub.tokenizer_directory(bare) == (OTHER, bare)
    run = tmp_path / "run"
    native(run / "checkpoint" / "step-3", weights)
    assert hub.tokenizer_directory(run) == (TOY, run / "checkpoint" / "step-3")
    assert hub.tokenizer_directory("toy_small") == (TOY, online.directory)
    assert "*.safetensors" not in online.asked[-1][1]
    assert "is a preset and has no tokenizer files" in problem(hub.tokenizer_directory, "toy_big")


def test_tokenizer_of_a_preset_offline():
    line = problem(hub.tokenizer_directory, "toy_small")
    assert "pip install 'lm-core[hub]' to download that of toys/small" in line
