"""The safetensors format, against the safetensors library and against damage."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm_core.checkpoint import io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Memory, TensorSpec, stream
from lm_core.checkpoint.tensorfile import SafetensorsFile, blocks, parse_size
from lm_core.errors import CheckpointError
from lm_core.testing.parity import assert_same

KINDS = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def arrays(seed=0):
    generator = np.random.default_rng(seed)
    found = {f"t.{kind}": generator.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    found["scalar"] = np.array(2.5, np.float32)
    found["empty"] = np.zeros((0, 4), np.float32)
    found["odd"] = generator.normal(size=(7,)).astype(np.float16)
    found["name with spaces and umlauts \xe4"] = generator.normal(size=(2, 3, 4))
    return found


def test_reads_what_the_library_writes(tmp_path):
    save_file(arrays(), tmp_path / "x.safetensors", metadata={"format": "pt", "a": "b"})
    found = SafetensorsFile(tmp_path / "x.safetensors")
    assert_same(found, arrays())
    assert found.metadata == {"format": "pt", "a": "b"}


def test_the_library_reads_what_is_written(tmp_path):
    tensorfile.write(tmp_path / "x.safetensors", Memory(arrays(), metadata={"k": "v"}))
    assert_same(load_file(tmp_path / "x.safetensors"), arrays())
    again = SafetensorsFile(tmp_path / "x.safetensors")
    assert again.metadata == {"k": "v"}
    # Every tensor begins at a multiple of its own size, for readers that map the file.
    for name, spec in again.specs.items():
        assert (again._start + again._offsets[name]) % spec.dtype.itemsize == 0, name
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_bfloat16_and_float8_keep_their_bytes(tmp_path):
    every = np.arange(65536, dtype="<u2")
    header = {
        "b": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 131072]},
        "f": {"dtype": "F8_E4M3", "shape": [256], "data_offsets": [131072, 131328]},
    }
    text = json.dumps(header).encode()
    body = every.tobytes() + bytes(range(256))
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    found = SafetensorsFile(tmp_path / "x.safetensors")
    assert found.read("b").dtype == BFLOAT16
    tensorfile.write(tmp_path / "y.safetensors", found)
    again = (tmp_path / "y.safetensors").read_bytes()
    assert again.endswith(body)
    assert_same(SafetensorsFile(tmp_path / "y.safetensors"), found)


def test_transposed_views_are_written_in_order(tmp_path):
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tensorfile.write(tmp_path / "x.safetensors", Memory({"t": x.T, "s": x[:, ::2], "f": x[::-1]}))
    found = load_file(tmp_path / "x.safetensors")
    assert np.array_equal(found["t"], x.T)
    assert np.array_equal(found["s"], x[:, ::2]) and np.array_equal(found["f"], x[::-1])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (5, 0), (3, 70001), (100000, 3)])
def test_blocks_are_the_bytes(shape, monkeypatch):
    monkeypatch.setattr(tensorfile, "_BLOCK", 4096)
    x = np.random.default_rng(0).integers(0, 99, shape).astype(np.int32)
    assert b"".join(blocks(x)) == x.tobytes()
    assert b"".join(blocks(x.T)) == np.ascontiguousarray(x.T).tobytes()


def test_shards_and_their_index(tmp_path):
    whole = {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(7)}
    whole["big"] = np.ones((50, 50), np.float32)
    written = []
    files = tensorfile.write_sharded(tmp_path, Memory(whole), 1000, written.append)
    assert sum(written) == 7 * 400 + 10000
    assert files[0] == "model-00001-of-00005.safetensors" and files[-1] == tensorfile.INDEX
    index = json.loads((tmp_path / tensorfile.INDEX).read_text())
    assert index["metadata"] == {"total_size": 12800}
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)
    sizes = [sum(a.nbytes for a in load_file(tmp_path / f).values()) for f in files[:-1]]
    assert sizes == [800, 800, 800, 400, 10000]
    assert_same(io.open_directory(tmp_path), whole)


def test_one_shard_has_no_index(tmp_path):
    for limit in (None, 10**6):
        assert tensorfile.write_sharded(tmp_path, Memory(arrays()), limit) == ["model.safetensors"]


def test_writing_holds_one_tensor(tmp_path):
    class Lazy:
        where, metadata = "lazy", {}
        specs = {f"t{i}": TensorSpec((1 << 20,), np.dtype("f4")) for i in range(16)}

        def read(self, name):
            return np.full(1 << 20, int(name[1:]), np.float32)

    tracemalloc.start()
    tensorfile.write(tmp_path / "x.safetensors", Lazy())
    peak = tracemalloc.get_traced_memory()[1]
    found = SafetensorsFile(tmp_path / "x.safetensors")
    tracemalloc.reset_peak()
    total = sum(float(array[0]) for _, array in stream(found))
    read_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == sum(range(16))
    assert peak < 2.2 * (1 << 22) and read_peak < 2.2 * (1 << 22)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 mb", 1500000), ("2GiB", 2**31), ("77", 77), (8, 8), ("3kb", 3000)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5XB", "0", "five", "1e9", "5GBB"])
def test_wrong_sizes(text):
    with pytest.raises(CheckpointError, match="is no size; write for example 5GB"):
        parse_size(text)


def broken(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_impossible_headers(tmp_path):
    path = tmp_path / "x.safetensors"
    assert "not JSON" in broken(path, b"{nonsense")
    assert "no table" in broken(path, [1, 2])
    assert "no table" in broken(path, {"a": 3})
    assert "no table" in broken(path, {"a": {"dtype": "F32"}})
    assert "type Q7" in broken(path, {"a": entry(0, 4, [1], "Q7")}, bytes(4))
    assert "impossible shape" in broken(path, {"a": entry(0, 4, [-1])}, bytes(4))
    assert "before it ends" in broken(path, {"a": entry(4, 8, [1])}, bytes(8))
    two = {"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}
    assert "does not begin where" in broken(path, two, bytes(8))
    assert "asks for" in broken(path, {"a": entry(0, 4, [1])}, bytes(5))
    assert "asks for" in broken(path, {"a": entry(0, 4, [1])}, bytes(3))
    assert "asks for" in broken(path, {"a": entry(0, 4, [2])}, bytes(4))
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="impossible length"):
        SafetensorsFile(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="impossible length"):
        SafetensorsFile(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    tensorfile.write(path, Memory({"a": np.arange(5.0), "b": np.arange(3)}))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_a_file_cut_after_opening_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    tensorfile.write(path, Memory({"a": np.arange(500.0)}))
    found = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="it ends inside a"):
        found.read("a")


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    tensorfile.write(path, Memory({"a": np.arange(5.0)}))
    before = path.read_bytes()

    class Failing(Memory):
        def read(self, name):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        tensorfile.write(path, Failing({"a": np.arange(9.0)}))
    with pytest.raises(CheckpointError, match="complex128, which safetensors lacks"):
        tensorfile.write(path, Memory({"a": np.zeros(2, complex)}))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_one_of_several_files_of_a_model(tmp_path):
    arrays = {"a": np.zeros(9, np.float32), "b": np.zeros(9, np.float32)}
    tensorfile.write_sharded(tmp_path, Memory(arrays), 40)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) == 2 and all(map(tensorfile.is_shard, shards))
    tensorfile.write(tmp_path / "other.safetensors", Memory(arrays))
    assert not tensorfile.is_shard(tmp_path / "other.safetensors")
    index = tmp_path / tensorfile.INDEX
    index.write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    assert not tensorfile.is_shard(tmp_path / "other.safetensors")
    index.write_text("{")
    assert not tensorfile.is_shard(shards[0])
