"""`python -m lm_gpt2.convert`: every way round gives the same bytes, and errors are one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lm_core import AutoModel
from lm_core.checkpoint import ckpt, io, tensorfile
from lm_core.checkpoint.atomic import MANIFEST, verify
from lm_core.checkpoint.layout import Cast, Memory, stream
from lm_core.cli import run_verb
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_gpt2 import SPEC

CASE = Path(__file__).parent / "goldens" / "gpt2"
FILES = ("model.safetensors", "model_prefixed.safetensors")
LAYOUTS = ("native", "mindformers", "hf")
WAYS = [way for stops in range(3) for way in product(LAYOUTS, repeat=stops)]


def convert(source, target, layout, *flags):
    words = ["--input", str(source), "--output", str(target), "--format", layout, *map(str, flags)]
    return run_verb("convert", SPEC, words)


def hashes(tensors):
    """SHA-256 of each tensor's bytes, with type and shape."""
    return {
        name: (str(a.dtype), a.shape, hashlib.sha256(a.tobytes()).hexdigest())
        for name, a in stream(tensors)
    }


def original(path):
    return {n: h for n, h in hashes(io.open_file(path)).items() if not n.endswith(".attn.bias")}


def written(directory):
    assert verify(directory) == []
    return hashes(io.open_directory(directory))


@pytest.fixture
def case(tmp_path):
    """The recorded case as a model directory, with one of its files and a tokenizer."""

    def make(name=FILES[0]):
        target = tmp_path / "source"
        target.mkdir()
        shutil.copy(CASE / "config.json", target)
        shutil.copy(CASE / name, target / "model.safetensors")
        (target / "vocab.json").write_text('{"a": 0}')
        (target / "merges.txt").write_text("#version: 0.2\n")
        (target / "generation_config.json").write_text('{"eos_token_id": 96}')
        return target

    return make


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_back_gives_the_same_bytes(case, tmp_path, name, way):
    """hf -> ... -> hf through up to two other layouts, under the very names it came with."""
    source = case(name)
    for i, layout in enumerate([*way, "hf"]):
        target = tmp_path / f"{i}-{layout}"
        assert convert(source, target, layout) == 0
        source = target
    assert written(source) == original(CASE / name)
    theirs = json.loads((source / "config.json").read_text())
    given = json.loads((CASE / "config.json").read_text())
    kept = {k: v for k, v in given.items() if not k.startswith("summary")}
    assert {key: theirs.get(key) for key in kept} == kept
    for file in ("vocab.json", "merges.txt", "generation_config.json"):
        assert (source / file).read_bytes() == (tmp_path / "source" / file).read_bytes()


@pytest.mark.parametrize("layout", ["hf", "mindformers"])
def test_native_and_back(tmp_path, layout):
    tiny.model(SPEC).save_pretrained(tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b", layout) == 0
    assert convert(tmp_path / "b", tmp_path / "c", "native") == 0
    assert written(tmp_path / "c") == written(tmp_path / "a")
    first, last = (json.loads((tmp_path / d / "config.json").read_text()) for d in "ac")
    assert first == last


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_narrow_types_keep_their_bits(tmp_path, dtype, layout):
    tiny.model(SPEC).save_pretrained(tmp_path / "a")
    narrow = Cast(io.open_directory(tmp_path / "a"), dtype)
    assert convert(tmp_path / "a", tmp_path / "b", layout, "--dtype", dtype) == 0
    assert convert(tmp_path / "b", tmp_path / "c", "native") == 0
    assert written(tmp_path / "c") == hashes(narrow)
    if layout == "hf":
        assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == dtype


def test_shards(case, tmp_path, capsys):
    assert convert(case(), tmp_path / "a", "native", "--max_shard_size", "20KB") == 0
    assert len(list((tmp_path / "a").glob("model-0*-of-0*.safetensors"))) > 3
    assert convert(tmp_path / "a", tmp_path / "b", "hf", "--max_shard_size", "30KB") == 0
    assert (tmp_path / "b" / tensorfile.INDEX).exists()
    assert written(tmp_path / "b") == original(CASE / FILES[0])
    assert "36 tensors, 0.1 MB, layout native" in capsys.readouterr().out


def test_the_hugging_face_library_finds_what_it_needs(case, tmp_path):
    convert(case(), tmp_path / "a", "native")
    convert(tmp_path / "a", tmp_path / "b", "hf")
    assert (
        load_file(tmp_path / "b" / "model.safetensors").keys() == original(CASE / FILES[0]).keys()
    )
    metadata = tensorfile.SafetensorsFile(tmp_path / "b" / "model.safetensors").metadata
    assert metadata == {"format": "pt"}


def test_mindspore_loads_the_mindformers_file(case, tmp_path):
    import mindspore

    convert(case(), tmp_path / "a", "mindformers")
    assert sorted(os.listdir(tmp_path / "a")) == [
        "config.json",
        "generation_config.json",
        "gpt2.ckpt",
        MANIFEST,
        "merges.txt",
        "vocab.json",
    ]
    found = mindspore.load_checkpoint(str(tmp_path / "a" / "gpt2.ckpt"), crc_check=True)
    fused = load_file(CASE / FILES[0])["h.1.attn.c_attn.weight"]
    name = "backbone.blocks.1.attention.dense2.weight"
    assert np.array_equal(found[name].asnumpy(), fused[:, 32:64].T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_loads_as_a_model(case, tmp_path, layout):
    convert(case(), tmp_path / "a", layout)
    loaded = tiny.weights(AutoModel.from_pretrained(tmp_path / "a"))
    expected = tiny.weights(AutoModel.from_pretrained(CASE / FILES[0]))
    assert_same(loaded, expected)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_bare_file_with_config(tmp_path, suffix, capsys):
    model = tiny.model(SPEC)
    theirs = SPEC.tables["mindformers"].save(Memory(tiny.weights(model)), model.config)
    (ckpt if suffix == ".ckpt" else tensorfile).write(tmp_path / f"w{suffix}", theirs)
    assert convert(tmp_path / f"w{suffix}", tmp_path / "a", "native") == 2
    assert "give the model with --config" in capsys.readouterr().err
    assert convert(tmp_path / f"w{suffix}", tmp_path / "a", "native", "--config", "gpt2_tiny") == 0
    assert written(tmp_path / "a") == hashes(Memory(tiny.weights(model)))


def test_an_existing_output_is_replaced_only_if_asked(case, tmp_path, capsys):
    source = case()
    assert convert(source, tmp_path / "a", "native") == 0
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert convert(source, tmp_path / "a", "hf") == 2
    error = capsys.readouterr().err
    assert "it is replaced only if asked; pass --overwrite" in error
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    assert convert(source, tmp_path / "a", "hf", "--overwrite") == 0
    assert written(tmp_path / "a") == original(CASE / FILES[0])
    # In place, too: the source is read before its name changes hands.
    assert convert(tmp_path / "a", tmp_path / "a", "native", "--overwrite") == 0
    assert convert(tmp_path / "a", tmp_path / "a", "hf", "--overwrite") == 0
    assert written(tmp_path / "a") == original(CASE / FILES[0])


def test_the_source_is_never_replaced_if_others_wrote_it(case, capsys):
    source = case()
    assert convert(source, source, "native", "--overwrite") == 2
    assert "holds weights without manifest.json" in capsys.readouterr().err
    assert original(source / "model.safetensors") == original(CASE / FILES[0])


def test_weights_that_do_not_fit_are_all_named_and_nothing_is_written(case, tmp_path, capsys):
    source = case()
    arrays = load_file(CASE / FILES[0])
    del arrays["h.0.ln_1.bias"], arrays["wpe.weight"]
    arrays |= {"h.7.ln_1.bias": np.zeros(3), "ln_f.weight": np.zeros(5, np.float32)}
    tensorfile.write(source / "model.safetensors", Memory(arrays))
    assert convert(source, tmp_path / "out", "native") == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "wpe.weight, h.0.ln_1.bias" in lines[0] and "h.7.ln_1.bias" in lines[1]
    assert "ln_f.weight is [5] and must be [32]" in lines[2]
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_head_that_differs_leaves_nothing_behind(case, tmp_path, capsys):
    """Found only in the middle of the work: the half-written output must go."""
    source = case()
    arrays = load_file(CASE / FILES[0])
    arrays["lm_head.weight"] = arrays["wte.weight"] + 1
    tensorfile.write(source / "model.safetensors", Memory(arrays))
    assert convert(source, tmp_path / "out", "native") == 2
    assert "lm_head.weight differs from wte.weight" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_shard_size", "huge"], "max_shard_size: 'huge' is no size"),
        (["--max_shard_sise", "5GB"], "did you mean --max_shard_size"),
        (["--config", "gpt3"], "gpt3: no such file or directory"),
    ],
)
def test_wrong_flags(case, tmp_path, capsys, flags, words):
    assert convert(case(), tmp_path / "out", "native", *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_exclude_each_other(case, tmp_path, capsys):
    assert convert(case(), tmp_path / "out", "mindformers", "--max_shard_size", "5GB") == 2
    assert (
        "the layout mindformers is a single file, which is not sharded" in capsys.readouterr().err
    )
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    assert convert(tmp_path / "source", tmp_path / "out", "native") == 2
    assert "no installed package knows 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["gpt2_tiny", "gpt2_52b"])
def test_a_preset_has_nothing_to_convert(tmp_path, capsys, source):
    assert convert(source, tmp_path / "out", "native") == 2
    assert "a size without weights" in capsys.readouterr().err


def test_what_hugging_face_cannot_hold(tmp_path, capsys):
    tiny.model(SPEC, post_layernorm_residual=True).save_pretrained(tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b", "hf") == 2
    assert "post_layernorm_residual: is True" in capsys.readouterr().err
    assert convert(tmp_path / "a", tmp_path / "b", "mindformers") == 0


def test_as_a_command_and_without_mindspore(case, tmp_path):
    code = (
        "import sys; from lm_core.cli import run_verb; from lm_gpt2 import SPEC;"
        "code = run_verb('convert', SPEC); assert 'mindspore' not in sys.modules; sys.exit(code)"
    )
    flags = ["--input", str(case()), "--output", str(tmp_path / "a"), "--format"]
    for start in (["-m", "lm_gpt2.convert"], ["-c", code]):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        command = [sys.executable, *start, *flags, "mindformers"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "36 tensors" in done.stdout and "100 %" in done.stderr


MEASURE = """
import resource, sys
from lm_core.cli import run_verb
from lm_gpt2 import SPEC
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert run_verb("convert", SPEC, sys.argv[1:]) == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux")
def test_a_model_converts_in_the_memory_of_its_largest_row(tmp_path):
    config = tiny.config(SPEC, hidden_size=512, num_layers=16, num_heads=8, vocab_size=1000)
    sizes = SPEC.tables["hf"].shapes(config)
    io.save_native(
        tmp_path / "0",
        "gpt2",
        config,
        Memory({n: np.ones(s, np.float32) for n, s in sizes.items()}),
    )
    row = 4 * 512 * 2048
    total = sum(4 * int(np.prod(shape)) for shape in sizes.values())
    assert total > 40 * row
    for i, layout in enumerate(("hf", "mindformers", "native")):
        words = ["--input", str(tmp_path / f"{i}"), "--output", str(tmp_path / f"{i + 1}")]
        command = [sys.executable, "-c", MEASURE, *words, "--format", layout]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        # Python's own modules take some 30 MB while the verb is imported; the model has 200 MB.
        assert int(done.stdout.split()[-1]) < 3 * row + 40e6 < total / 3, layout
    assert written(tmp_path / "3") == written(tmp_path / "0")
