"""The release of PanGu-alpha's authors: parts of a run, its strategy file, and three arrays.

The ones here are of a tiny model and of few ranks, cut and written without MindSpore.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from lm_core import AutoModel
from lm_core.checkpoint import ckpt, io
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, stream
from lm_core.cli import main
from lm_core.testing import tiny
from lm_pangualpha import SPEC
from lm_pangualpha.config import PRESETS
from lm_pangualpha.weights import TABLES

RUN = """
trainer: {model_name: pangualpha_tiny}
model:
  model_config:
    preset: pangualpha_tiny
    hidden_size: 32
    num_heads: 4
    vocab_size: 96
    seq_length: 16
    hidden_act: gelu_tanh
"""
SIZES = {"hidden_size": 32, "num_heads": 4, "vocab_size": 96, "seq_length": 16}
CONFIG = PRESETS["pangualpha_tiny"].copy(SIZES, hidden_act="gelu_tanh")
TABLE = "backbone.embedding.word_embedding.embedding_table"
ARRAYS = {
    "word_embedding": TABLE,
    "position_embedding": "backbone.embedding.position_embedding.embedding_table",
    "top_query_embedding": "backbone.top_query_embedding.embedding_table",
}
ROWS = ("dense1.weight", "dense2.weight", "dense3.weight", "projection.weight")
ROWS += ("dense1.bias", "dense2.bias", "dense3.bias", "mapping.bias", "word_embedding_table")
CUTS = {
    "tensor": ((1, 4), False),
    "copies": ((2, 2), False),
    "optimizer": ((4, 2), True),
    "alone": ((1, 1), False),
    "data": ((4, 1), True),
}
"""Device matrices, data and tensor parallel; and whether the former cuts the first dimension."""


# A release, made of plain bytes.


def number(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(key, value):
    """A field of a protobuf message."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(value)) + value


def strategy_file(items):
    """What MindSpore's `strategy_ckpt_save_file` holds."""
    out = field(1, 0) + field(2, field(1, "op0") + field(2, field(1, 0)))
    for name, (devices, axes, parts, step) in items.items():
        matrix, tensor_map = (b"".join(field(1, v) for v in values) for values in (devices, axes))
        layout = field(1, matrix) + field(2, tensor_map) + field(3, b"")
        layout += field(5, 0) + field(6, step) + field(7, parts)
        out += field(3, field(1, name) + field(2, layout))
    return out


def item(name, shape, devices, sharded):
    """How the authors' program cut a tensor: device matrix, tensor map, optimizer's parts, step."""
    axes = [-1] * len(shape)
    if name.endswith(ROWS):
        axes[0] = 0
    elif name.endswith("mapping.weight"):
        axes[1] = 0
    data, tensor = devices
    if not sharded or "layernorm" in name or "embedding" in name:
        return devices, axes, 0, 0
    # The ranks that have the same are a group, whose neighbours are `tensor` ranks apart.
    return (devices, axes, data, tensor) if 0 in axes else (devices, axes, data * tensor, 1)


def part_of(array, rank, devices, axes, parts, step):
    place = np.unravel_index(rank, devices)
    for dim, axis in enumerate(axes):
        if axis >= 0:
            array = np.split(array, devices[-1 - axis], dim)[place[-1 - axis]]
    if parts:
        array = np.split(array, parts, 0)[rank // step % parts]
    return np.ascontiguousarray(array)


def whole_tensors(config=CONFIG, seed=0, dtype=np.float32):
    """Under the names of the release; no two numbers of a tensor are alike."""
    rng = np.random.default_rng(seed)
    nothing = {n: np.empty(s, np.dtype([])) for n, s in TABLES["hf"].shapes(config).items()}
    specs = TABLES["official"].save(Memory(nothing), config).specs
    return {name: rng.standard_normal(spec.shape).astype(dtype) for name, spec in specs.items()}


def write_release(folder, arrays, cut="optimizer", stem="13B_"):
    """Its three folders, and what the strategy file says."""
    devices, sharded = CUTS[cut]
    for name in ("parts", "npy"):
        (folder / name).mkdir(parents=True)
    for name, tensor in ARRAYS.items():
        np.save(folder / "npy" / f"{stem}{name}.npy", arrays[tensor])
    # Older tables under older names, which nobody reads.
    inside = {n: a for n, a in arrays.items() if n not in ARRAYS.values()}
    inside |= {"word_embedding_table": np.zeros_like(arrays[TABLE]), "step_num": np.int32([7])}
    items = {n: item(n, a.shape, devices, sharded) for n, a in inside.items() if n != "step_num"}
    items |= {f"adam_m.{name}": said for name, said in items.items()}
    for rank in range(int(np.prod(devices))):
        held = {n: part_of(a, rank, *items[n]) if n in items else a for n, a in inside.items()}
        ckpt.write(folder / "parts" / f"filerted_{rank}.ckpt", Memory(held))
    (folder / "pangu_alpha_ckpt_strategy.ckpt").write_bytes(strategy_file(items))
    (folder / "run.yaml").write_text(RUN)
    return items


def words(folder, output, *more, **changed):
    places = {
        "official_strategy_path": folder / "pangu_alpha_ckpt_strategy.ckpt",
        "official_ckpt_dir": folder / "parts",
        "official_npy_dir": folder / "npy",
        "ckpt_save_path": output,
        "config_path_or_name": folder / "run.yaml",
    }
    flags = [(f"--{k}", str(v)) for k, v in (places | changed).items() if v is not None]
    return ["convert", "pangualpha", *(w for flag in flags for w in flag), *map(str, more)]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# What is made of it.


@pytest.mark.parametrize("cut", CUTS)
def test_parts_become_one_file(tmp_path, cut):
    arrays = whole_tensors()
    write_release(tmp_path / "release", arrays, cut)
    before = contents(tmp_path / "release")
    assert main(words(tmp_path / "release", tmp_path / "out" / "pangualpha.ckpt")) == 0
    same(dict(stream(io.open_file(tmp_path / "out" / "pangualpha.ckpt"))), arrays)
    assert contents(tmp_path / "release") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pangualpha.ckpt"]


def test_a_folder_that_is_used_at_once(tmp_path, capsys):
    """Half precision in the parts, the tokenizer beside them, all in one folder."""
    arrays = whole_tensors(dtype=np.float16)
    write_release(tmp_path / "release", arrays, stem="")
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "release").rglob("*.*"):
        shutil.copy(file, flat)
    (flat / "vocab.model").write_bytes(b"x")
    places = {"official_ckpt_dir": flat, "official_npy_dir": flat}
    assert main(words(tmp_path / "release", tmp_path / "out", **places)) == 0
    assert "53 tensors" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.hidden_act == "gelu_tanh" and model.config.num_layers == 3
    table = TABLES["mindformers"].save(Memory(tiny.weights(model)), CONFIG)
    same(dict(stream(table)), dict(stream(Cast(Memory(arrays), "float32"))))
    assert (tmp_path / "out" / "vocab.model").read_bytes() == b"x"


@pytest.mark.parametrize("layout", ["hf", "mindformers"])
def test_other_layouts_and_types(tmp_path, layout):
    arrays = whole_tensors()
    arrays[TABLE] = arrays[TABLE].astype(np.float64)
    write_release(tmp_path / "release", arrays)
    more = ("--format", layout, "--dtype", "bfloat16")
    assert main(words(tmp_path / "release", tmp_path / "out", *more)) == 0
    found = io.open_directory(tmp_path / "out")
    assert {spec.dtype for spec in found.specs.values()} == {BFLOAT16}
    ours = TABLES[layout].load(found, CONFIG)
    expected = Cast(Cast(Memory(arrays), "float32"), "bfloat16")
    same(dict(stream(TABLES["official"].save(ours, CONFIG))), dict(stream(expected)))


@pytest.mark.parametrize("output", ["a.ckpt", "folder"])
def test_again_gives_the_same(tmp_path, capsys, output):
    release, target = tmp_path / "release", tmp_path / output
    write_release(release, whole_tensors())
    assert main(words(release, target)) == 0
    first = contents(tmp_path)
    capsys.readouterr()
    assert main(words(release, target)) == 0
    assert "is there already; 53 tensors are the same" in capsys.readouterr().out
    assert contents(tmp_path) == first
    assert main(words(release, target, "--overwrite")) == 0
    assert main(words(release, tmp_path / f"b{target.suffix}")) == 0
    files = [target, tmp_path / f"b{target.suffix}"]
    if target.is_dir():
        assert {p.name for p in target.iterdir()} == {p.name for p in files[1].iterdir()}
        files = [folder / name for name in ("model.safetensors", "config.json") for folder in files]
    for one, other in zip(files[::2], files[1::2], strict=True):
        assert one.read_bytes() == other.read_bytes()
    # Something else is not taken for it.
    write_release(tmp_path / "other", whole_tensors(seed=1))
    before = contents(target.parent)
    assert main(words(tmp_path / "other", target)) == 2
    assert "is there already and is something else" in capsys.readouterr().err
    if output == "folder":
        assert main(words(release, target, "--format", "hf")) == 2
    assert contents(target.parent) == before


# MindSpore's opinion.


def test_mindspores_own_reader_and_merge(tmp_path):
    """The strategy file to the byte; and what `transform_checkpoints` makes of the parts."""
    import mindspore
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    write_release(tmp_path / "release", whole_tensors())
    file = tmp_path / "release" / "pangu_alpha_ckpt_strategy.ckpt"
    parsed = ParallelStrategyMap()
    parsed.ParseFromString(file.read_bytes())
    assert parsed.SerializeToString(deterministic=True) == file.read_bytes()
    for rank in range(8):
        folder = tmp_path / "ranks" / f"rank_{rank}"
        folder.mkdir(parents=True)
        part = io.open_file(tmp_path / "release" / "parts" / f"filerted_{rank}.ckpt")
        kept = {name: part.read(name) for name in part.specs if name != "step_num"}
        ckpt.write(folder / f"filerted_{rank}.ckpt", Memory(kept))
    (tmp_path / "merged").mkdir()
    mindspore.transform_checkpoints(
        str(tmp_path / "ranks"), str(tmp_path / "merged"), "merged_pangu", str(file)
    )
    theirs = dict(stream(io.open_file(tmp_path / "merged" / "rank_0" / "merged_pangu0.ckpt")))
    assert theirs.pop("word_embedding_table").shape == (96, 32)
    assert main(words(tmp_path / "release", tmp_path / "ours.ckpt")) == 0
    ours = dict(stream(io.open_file(tmp_path / "ours.ckpt")))
    for name in ARRAYS.values():
        del ours[name]
    same(ours, theirs)


# Memory.

MEASURE = """
import re, sys
from lm_core.cli import main
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
middle = sys.argv.index("then")
assert main(sys.argv[1:middle]) == 0
before = peak()
assert main(sys.argv[middle + 1:]) == 0
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_largest_tensor(tmp_path):
    """After a small release, so that MindSpore and its libraries are loaded."""
    config = CONFIG.copy(hidden_size=1024, num_layers=4, vocab_size=512)
    arrays = whole_tensors(config)
    write_release(tmp_path / "small", whole_tensors())
    write_release(tmp_path / "large", arrays)
    run = RUN.replace("hidden_size: 32", "hidden_size: 1024\n    num_layers: 4")
    (tmp_path / "large" / "run.yaml").write_text(run.replace("vocab_size: 96", "vocab_size: 512"))
    largest = max(array.nbytes for array in arrays.values())
    total = sum(array.nbytes for array in arrays.values())
    both = [*words(tmp_path / "small", tmp_path / "a.ckpt"), "then"]
    both += words(tmp_path / "large", tmp_path / "b.ckpt")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *both], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout.split()[-1]) < 2 * largest + 10e6 < total / 4, done.stdout


# What is wrong.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "release"
    write_release(folder, whole_tensors())
    return folder


@pytest.fixture
def release(made, tmp_path):
    return shutil.copytree(made, tmp_path / "release")


def refused(capsys, folder, *more, output="out.ckpt", **changed):
    target = folder.parent / output
    assert main(words(folder, target, *more, **changed)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not target.exists()
    assert not list(folder.parent.glob(".out*"))
    return [line for line in said.splitlines() if line.startswith("error: ")]


def damage_slice(folder):
    path = folder / "parts" / "filerted_5.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])


def remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def other_sizes(folder):
    write_release(folder / "x", whole_tensors(CONFIG.copy(hidden_size=64)), "optimizer")
    shutil.copy(folder / "x" / "parts" / "filerted_3.ckpt", folder / "parts")


def other_run(folder, cut):
    write_release(folder / "x", whole_tensors(), cut)
    shutil.copy(folder / "x" / "pangu_alpha_ckpt_strategy.ckpt", folder)


def save(folder, name, array):
    np.save(folder / "npy" / f"{name}.npy", array)


NPY = "npy/13B_word_embedding.npy"
WRONG = {
    "no part": (
        lambda r: remove(r, *(f"parts/filerted_{rank}.ckpt" for rank in range(8))),
        "parts: holds no filerted_0.ckpt; the parts of all 8 ranks",
    ),
    "parts missing": (
        lambda r: remove(r, "parts/filerted_3.ckpt", "parts/filerted_6.ckpt"),
        "parts: the part of rank 3, 6 is missing; all 8 ranks of",
    ),
    "too many parts": (
        lambda r: shutil.copy(r / "parts/filerted_0.ckpt", r / "parts/filerted_8.ckpt"),
        "parts: holds the parts of 9 ranks and",
    ),
    "a damaged part": (damage_slice, "filerted_5.ckpt: its CRC does not fit its contents"),
    "a part cut short": (
        lambda r: shorten(r, "parts/filerted_1.ckpt"),
        "filerted_1.ckpt: it is no list of tensors",
    ),
    "a part of another model": (other_sizes, "filerted_3.ckpt: backbone."),
    "strategy of fewer ranks": (lambda r: other_run(r, "data"), "is about 4; both must be of one"),
    "strategy of more ranks": (
        lambda r: remove(r, *(f"parts/filerted_{rank}.ckpt" for rank in range(4, 8))),
        "the part of rank 4, 5, 6, 7 is missing",
    ),
    "no strategy": (
        lambda r: remove(r, "pangu_alpha_ckpt_strategy.ckpt"),
        "pangu_alpha_ckpt_strategy.ckpt: holds no strategy file",
    ),
    "a damaged strategy": (
        lambda r: shorten(r, "pangu_alpha_ckpt_strategy.ckpt"),
        "pangu_alpha_ckpt_strategy.ckpt: cannot be read as a strategy file",
    ),
    "no array": (lambda r: remove(r, NPY), "npy: holds no such file; must hold one whose name"),
    "an array twice": (
        lambda r: save(r, "2.6B_word_embedding", np.zeros((96, 32), np.float32)),
        "npy: holds 13B_word_embedding.npy, 2.6B_word_embedding.npy; must hold one whose name "
        "ends in word_embedding.npy",
    ),
    "an array of another size": (
        lambda r: save(r, "13B_word_embedding", np.zeros((96, 64), np.float32)),
        "word_embedding.embedding_table is [96, 64] and must be [96, 32]",
    ),
    "an array of whole numbers": (
        lambda r: save(r, "13B_word_embedding", np.zeros((96, 32), np.int64)),
        "13B_word_embedding.npy: holds int64; must hold floating-point numbers",
    ),
    "an array of objects": (
        lambda r: save(r, "13B_word_embedding", np.full((96, 32), None)),
        "13B_word_embedding.npy: cannot be read as an array of NumPy",
    ),
    "an array cut short": (
        lambda r: shorten(r, NPY), "13B_word_embedding.npy: cannot be read as an array of NumPy"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_told_in_a_line(release, capsys, kind):
    spoil, expected = WRONG[kind]
    spoil(release)
    (line,) = refused(capsys, release)
    assert expected in line


def test_a_configuration_of_another_size(release, capsys):
    lines = refused(capsys, release, config_path_or_name="pangualpha_tiny")
    assert len(lines) == 1 and "53 wrongly shaped tensors" in lines[0]
    text = (release / "run.yaml").read_text()
    (release / "run.yaml").write_text(f"{text}    num_layers: 4\n")
    (line,) = refused(capsys, release)
    assert "16 missing tensors: backbone.blocks.2.layernorm1.gamma" in line


OF_FLAGS = {
    "one missing": ({"official_npy_dir": None}, (), "--official_npy_dir: missing; the official"),
    "no sizes": ({"config_path_or_name": None}, (), "--config: is missing; must say the sizes of"),
    "another model": ({"config_path_or_name": "llama_tiny"}, (), "is llama_tiny; must say the"),
    "two inputs": ({}, ("--input", "x"), "--npy_dir are both given"),
    "an adapter": ({"ckpt_save_path": "out"}, ("--format", "peft"), "has no adapter"),
}


@pytest.mark.parametrize("kind", OF_FLAGS)
def test_flags_that_do_not_fit(release, capsys, kind):
    changed, more, expected = OF_FLAGS[kind]
    if kind == "another model":
        pytest.importorskip("lm_llama")
    (line,) = refused(capsys, release, *more, **changed)
    assert expected.replace("--npy", "--official_npy") in line


def test_nothing_given(capsys, tmp_path):
    assert main(["convert", "pangualpha", "--output", str(tmp_path / "x.ckpt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--official_npy_dir are both missing; one of them must say what is converted" in line


@pytest.mark.parametrize("name", ["parts/filerted_2.ckpt", "pangu_alpha_ckpt_strategy.ckpt"])
def test_the_release_is_never_written_over(release, capsys, name):
    before = contents(release)
    assert main(words(release, release / name, "--overwrite")) == 2
    assert f"{name}: is a file of the official release; it is never" in capsys.readouterr().err
    assert main(words(release, release / "parts", "--overwrite")) == 2
    assert "holds weights without manifest.json" in capsys.readouterr().err
    assert contents(release) == before


def test_only_this_model_has_these_flags(capsys):
    shown = {}
    for model in ("pangualpha", "gpt2"):
        pytest.importorskip(f"lm_{model}")
        with pytest.raises(SystemExit):
            main(["convert", model, "--help"])
        shown[model] = capsys.readouterr().out
    for flag in ("strategy_path", "ckpt_dir", "npy_dir"):
        assert f"--official_{flag}" in shown["pangualpha"]
    assert "official" not in shown["gpt2"] and "ckpt_save_path" not in shown["gpt2"]
    assert "{native,hf,mindformers,peft}" in shown["pangualpha"]


def test_released_sizes():
    """512 parts of tensors of the published sizes: each fits, and nothing is asked twice."""
    from lm_core.parallel.strategy import Item

    for preset in ("pangualpha_2_6b", "pangualpha_13b"):
        config = SPEC.presets[preset]
        for name, array in (
            TABLES["mindformers"]
            .save(
                Memory(
                    {n: np.empty(s, np.dtype([])) for n, s in TABLES["hf"].shapes(config).items()}
                ),
                config,
            )
            .specs.items()
        ):
            devices, axes, parts, step = item(name, array.shape, (64, 8), True)
            cut = Item(devices, tuple(axes), parts, step)
            assert cut.whole(cut.local(array.shape)) == array.shape, name
