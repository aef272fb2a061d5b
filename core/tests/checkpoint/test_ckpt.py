"""MindSpore's .ckpt format, against MindSpore itself and against damage."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lm_core.checkpoint import ckpt
from lm_core.checkpoint.ckpt import CkptFile
from lm_core.checkpoint.layout import BFLOAT16, Memory, cast, stream
from lm_core.errors import CheckpointError
from lm_core.testing.parity import assert_same


def arrays():
    generator = np.random.default_rng(0)
    found = {f"w.{k}": generator.integers(0, 2, (3, 5)).astype(k) for k in ("f8", "f4", "f2", "?")}
    found |= {f"i.{k}": generator.integers(0, 99, (4,)).astype(k) for k in ("i8", "i4", "i1", "u1")}
    found["bf"] = cast(generator.normal(size=(6, 4)).astype(np.float32), BFLOAT16)
    found["scalar"] = np.array(2.5, np.float32)
    found["long"] = np.arange(300 * 7, dtype=np.float32).reshape(300, 7)
    return found


def as_mindspore(array):
    from mindspore import Tensor, bfloat16

    if array.dtype == BFLOAT16:
        return Tensor(cast(array, np.dtype("<f4")), bfloat16)
    return Tensor(array)


def as_numpy(parameter):
    array = parameter.asnumpy()
    return array.view(np.uint16).view(BFLOAT16) if array.dtype.name == "bfloat16" else array


@pytest.mark.parametrize("crc", [True, False])
def test_reads_what_mindspore_writes(tmp_path, crc):
    import mindspore

    path = str(tmp_path / "x.ckpt")
    items = [{"name": name, "data": as_mindspore(array)} for name, array in arrays().items()]
    mindspore.save_checkpoint(items, path, append_dict={"epoch_num": 3, "s": "text"}, crc_check=crc)
    found = CkptFile(path)
    read = dict(stream(found))
    assert int(read.pop("epoch_num")) == 3
    assert_same(read, arrays())
    assert found.metadata == {"s": "text"}


def test_mindspore_reads_what_is_written(tmp_path):
    import mindspore

    path = tmp_path / "x.ckpt"
    ckpt.write(path, Memory(arrays()))
    found = mindspore.load_checkpoint(str(path), crc_check=True)
    assert_same({name: as_numpy(p) for name, p in found.items()}, arrays())


def test_large_tensors_are_sliced_and_joined(tmp_path, monkeypatch):
    """Over 512 MB a tensor is several values; here the limit is a few hundred bytes."""
    import mindspore

    monkeypatch.setattr(ckpt, "_SLICE", 700)
    path = tmp_path / "x.ckpt"
    written = []
    ckpt.write(path, Memory(arrays()), written.append)
    assert sum(written) == sum(array.nbytes for array in arrays().values())
    assert len(CkptFile(path)._parts["long"]) > 5
    assert_same(CkptFile(path), arrays())
    found = mindspore.load_checkpoint(str(path), crc_check=True)
    assert_same({name: as_numpy(p) for name, p in found.items()}, arrays())


def test_reads_mindspores_own_slices(tmp_path, monkeypatch):
    import mindspore
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)
    path = str(tmp_path / "x.ckpt")
    big = np.arange(5000, dtype=np.float32).reshape(50, 100)
    mindspore.save_checkpoint([{"name": "big", "data": as_mindspore(big)}], path)
    found = CkptFile(path)
    assert len(found._parts["big"]) > 5
    assert_same(found, {"big": big})


def test_empty_tensors_and_transposed_views(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    given = {"t": x.T, "none": np.zeros((0, 3), np.float32), "zero": np.zeros(0, np.float32)}
    ckpt.write(tmp_path / "x.ckpt", Memory(given))
    assert_same(CkptFile(tmp_path / "x.ckpt"), given)


def test_every_flipped_byte_and_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.ckpt"
    ckpt.write(path, Memory({"a": np.arange(5.0), "b": np.arange(3)}))
    data = path.read_bytes()
    good = dict(stream(CkptFile(path)))
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        # Damage to the word "crc_num" itself leaves bytes that are no list of tensors.
        with pytest.raises(CheckpointError):
            CkptFile(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            assert_same(CkptFile(path), good)
        except (CheckpointError, AssertionError):
            continue
        # Without its CRC a list that ends after a whole value is a valid, if shorter, file.
        assert length == len(data) - 17


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 a zip file", "no list of tensors"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no list of tensors"),
        (b"\x0a\x05ab", "no list of tensors"),
        (bytes(40), "no list of tensors"),
        (b"\x0a\x06\x0a\x01a\x1a\x01b", "a is a map of parameters"),
        (b"\x0a\x0a\x0a\x01a\x12\x05\x12\x03Foo", "type Foo"),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        CkptFile(path)
    assert caught.value.problems[0].startswith(str(path))


def test_random_bytes_never_do_worse_than_an_error(tmp_path):
    generator = np.random.default_rng(5)
    path = tmp_path / "x.ckpt"
    ckpt.write(path, Memory({"a": np.arange(5.0), "b": np.arange(3, dtype=np.int32)}))
    data = path.read_bytes()[:-17]
    for _ in range(300):
        changed = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            changed[position] = generator.integers(0, 256)
        path.write_bytes(changed)
        try:
            found = CkptFile(path)
            total = sum(spec.nbytes for spec in found.specs.values())
            assert total <= len(data)
            dict(stream(found))
        except CheckpointError:
            pass


def test_unsupported_types_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a has type complex128, which \.ckpt files lack"):
        ckpt.write(tmp_path / "x.ckpt", Memory({"a": np.zeros(2, complex)}))
    assert not list(tmp_path.iterdir())


def test_mindspore_is_not_needed(tmp_path):
    ckpt.write(tmp_path / "x.ckpt", Memory({"a": np.arange(5.0)}))
    code = (
        "import sys; from lm_core.checkpoint.io import open_file;"
        "t = open_file(sys.argv[1]); assert t.read('a').sum() == 10;"
        "assert 'mindspore' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.ckpt")]
    subprocess.run(command, check=True, env=os.environ, timeout=60)
