"""Releases: slices of tensors in several files are joined as they are read."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm_core.checkpoint import released, tensorfile
from lm_core.checkpoint.layout import Memory, Pieces, Release, cast, stream
from lm_core.checkpoint.layout.tensors import BFLOAT16
from lm_core.errors import CheckpointError
from lm_core.testing.parity import assert_same

AXES = {"rows": 0, "columns": 1, "cube": 2, "same": None}
RELEASE = Release("about.json", "whole", lambda name, specs: AXES[name], dict, dict)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"rows": (8, 3), "columns": (3, 8), "cube": (2, 3, 4), "same": (5,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def cut(arrays, count):
    """What each of `count` processes would write."""
    slices = {
        name: [array] * count if AXES[name] is None else np.split(array, count, AXES[name])
        for name, array in arrays.items()
    }
    return [{name: slices[name][rank] for name in arrays} for rank in range(count)]


def join(parts):
    tensors = [Memory(part, f"file {rank}") for rank, part in enumerate(parts)]
    return Pieces("here", tensors, RELEASE.axis)


def problems(call, *given):
    with pytest.raises(CheckpointError) as caught:
        call(*given)
    return caught.value.problems


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_cut_and_joined_is_the_same(arrays, count, kind):
    if kind == "bfloat16":
        arrays = {name: cast(array, BFLOAT16) for name, array in arrays.items()}
    joined = join(cut(arrays, count))
    assert joined.specs == Memory(arrays).specs
    assert_same(joined, arrays)


def test_slices_may_be_unequal(arrays):
    first, second = ({**arrays, "rows": rows} for rows in np.split(arrays["rows"], [3]))
    joined = join([first, second])
    assert joined.specs["rows"].shape == (8, 3)
    np.testing.assert_array_equal(joined.read("rows"), arrays["rows"])


def test_only_what_is_asked_for_is_read(arrays):
    class Counting(Memory):
        def read(self, name):
            asked.append(name)
            return super().read(name)

    asked = []
    joined = Pieces("here", [Counting(part) for part in cut(arrays, 2)], RELEASE.axis)
    assert asked == []
    joined.read("columns")
    assert asked == ["columns", "columns"]


def test_what_all_files_hold_must_be_equal(arrays):
    parts = cut(arrays, 4)
    parts[2]["same"] = arrays["same"] + np.float32(1e-7)
    joined = join(parts)
    np.testing.assert_array_equal(joined.read("rows"), arrays["rows"])
    (line,) = problems(joined.read, "same")
    assert "here: same of file 2 differs from that of file 0; must be the same" in line


def test_files_of_different_models_are_all_named(arrays):
    parts = cut(arrays, 4)
    del parts[1]["same"]
    parts[2]["rows"] = np.zeros((2, 7), np.float32)
    parts[2]["columns"] = parts[2]["columns"].astype(np.float16)
    parts[3]["cube"] = np.zeros((2, 3), np.float32)
    lines = problems(join, parts)
    assert len(lines) == 4
    assert "file 1: has other tensors than file 0 (same)" in lines[0]
    assert "file 2: rows is float32 [2, 7] and that of file 0 float32 [2, 3]" in lines[1]
    assert "file 2: columns is float16 [3, 2] and that of file 0 float32 [3, 2]" in lines[2]
    assert "file 3: cube is float32 [2, 3] and that of file 0 float32 [2, 3, 1]" in lines[3]


def names(*files: str, folder: Path):
    for file in files:
        (folder / file).touch()
    return [path.name for path in released.files(folder, RELEASE)]


def test_files_are_those_of_the_ranks_in_order(tmp_path):
    assert names("about.json", "other.00.pth", "whole.00.bin", folder=tmp_path) == []
    numbered = [f"whole.{rank:02}.pth" for rank in range(11)]
    assert names(*reversed(numbered), "whole.x.pth", folder=tmp_path) == numbered
    # safetensors come before pickles, and a whole file before slices.
    assert names("whole.00.safetensors", folder=tmp_path) == ["whole.00.safetensors"]
    assert names("whole.safetensors", folder=tmp_path) == ["whole.safetensors"]


def test_a_missing_file_is_named(tmp_path):
    for rank in (1, 3):
        (tmp_path / f"whole.{rank:02}.pth").touch()
    (line,) = problems(released.files, tmp_path, RELEASE)
    assert "whole.00.pth, whole.02.pth missing; all files of the release must be there" in line


def test_joined_files(tmp_path, arrays):
    for rank, part in enumerate(cut(arrays, 2)):
        tensorfile.write(tmp_path / f"whole.{rank:02}.safetensors", Memory(part))
    (tmp_path / "about.json").write_text(json.dumps({}))
    found = dict(stream(released.open_files(tmp_path, RELEASE)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
