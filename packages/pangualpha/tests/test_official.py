"""The release of PanGu-alpha's authors becomes files of every layout, one tensor at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from official import (
    ARRAYS,
    CONFIG,
    CUTS,
    RUN,
    TABLE,
    contents,
    whole_tensors,
    words,
    write_release,
)

from lm_core import AutoModel
from lm_core.checkpoint import ckpt, io
from lm_core.checkpoint.layout import BFLOAT16, Cast, Memory, stream
from lm_core.cli import main
from lm_core.testing import tiny
from lm_core.testing.parity import assert_same
from lm_pangualpha.weights import TABLES


@pytest.mark.parametrize("cut", CUTS)
def test_parts_become_one_file(tmp_path, cut):
    arrays = whole_tensors()
    write_release(tmp_path / "release", arrays, cut)
    before = contents(tmp_path / "release")
    assert main(words(tmp_path / "release", tmp_path / "out" / "pangualpha.ckpt")) == 0
    assert_same(io.open_file(tmp_path / "out" / "pangualpha.ckpt"), arrays)
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
    assert_same(table, Cast(Memory(arrays), "float32"))
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
    assert_same(TABLES["official"].save(ours, CONFIG), expected)


@pytest.mark.parametrize("output", ["a.ckpt", "native", "hf", "mindformers"])
def test_again_gives_the_same(tmp_path, capsys, output):
    """Twice into one place, and into another; something else is not taken for it."""
    release, target = tmp_path / "release", tmp_path / output
    other = tmp_path / f"b{target.suffix}"
    more = () if target.suffix else ("--format", output)
    write_release(release, whole_tensors())
    assert main(words(release, target, *more)) == 0
    first = contents(tmp_path)
    capsys.readouterr()
    assert main(words(release, target, *more)) == 0
    assert "is there already; 53 tensors are the same" in capsys.readouterr().out
    assert contents(tmp_path) == first
    assert main(words(release, target, *more, "--overwrite")) == 0
    assert main(words(release, other, *more)) == 0
    made = [
        {file.name: file.read_bytes() for file in ([one] if one.is_file() else one.iterdir())}
        for one in (target, other)
    ]
    count = {"a.ckpt": 1, "hf": 4}.get(output, 3)
    assert [*made[0].values()] == [*made[1].values()] and len(made[0]) == count
    # A model of the same sizes, and this one in another type or layout.
    write_release(tmp_path / "new", whole_tensors(seed=1))
    before = contents(tmp_path)
    again = [words(tmp_path / "new", target, *more), words(release, target, *more, "--dtype")]
    again[1].append("float16")
    if not target.suffix:
        again.append(words(release, target, "--format", "native" if output == "hf" else "hf"))
    for line in again:
        assert main(line) == 2
        assert "is there already and is something else" in capsys.readouterr().err
    assert contents(tmp_path) == before


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
    assert_same(ours, theirs)


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
    run = RUN.replace("hidden_size: 32", "hidden_size: 1024").replace("layers: 3", "layers: 4")
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
