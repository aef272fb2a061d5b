"""Files and directories of every kind, and models to and from them."""

import builtins
import json
import sys
import types

import numpy as np
import pytest

from lm_core.checkpoint import ckpt, io, tensorfile
from lm_core.checkpoint.layout import BFLOAT16, Memory, cast, stream
from lm_core.errors import CheckpointError
from lm_core.testing.parity import assert_same

F32 = np.dtype("<f4")


def arrays():
    generator = np.random.default_rng(0)
    return {f"w{i}": generator.normal(size=(4, i + 1)).astype(np.float32) for i in range(5)}


def problem(call, *parts):
    with pytest.raises(CheckpointError) as caught:
        call(*parts)
    (line,) = caught.value.problems
    return line


def test_a_file_by_its_suffix(tmp_path):
    tensorfile.write(tmp_path / "a.safetensors", Memory(arrays()))
    ckpt.write(tmp_path / "a.ckpt", Memory(arrays()))
    for name in ("a.safetensors", "a.ckpt"):
        assert_same(io.open_file(tmp_path / name), arrays())
    (tmp_path / "a.npz").touch()
    assert "unknown kind of weights file" in problem(io.open_file, tmp_path / "a.npz")
    assert "no such file" in problem(io.open_file, tmp_path / "b.ckpt")


def test_what_a_directory_is_read_from(tmp_path):
    assert "holds no weights" in problem(io.open_directory, tmp_path)
    assert not io.has_weights(tmp_path)
    ckpt.write(tmp_path / "x.ckpt", Memory({"from": np.zeros(1)}))
    assert io.open_directory(tmp_path).where.endswith("x.ckpt") and io.has_weights(tmp_path)
    ckpt.write(tmp_path / "y.ckpt", Memory({"from": np.zeros(1)}))
    line = problem(io.open_directory, tmp_path)
    assert "holds x.ckpt, y.ckpt, which have the same tensors, and no index" in line
    ckpt.write(tmp_path / "y.ckpt", Memory({"other": np.ones(2)}))
    assert_same(io.open_directory(tmp_path), {"from": np.zeros(1), "other": np.ones(2)})
    tensorfile.write(tmp_path / "other.safetensors", Memory(arrays()))
    assert io.open_directory(tmp_path).where.endswith("other.safetensors")
    (tmp_path / "pytorch_model.bin").touch()
    tensorfile.write(tmp_path / "model.safetensors", Memory(arrays()))
    assert io.open_directory(tmp_path).where.endswith("model.safetensors")


def sharded(tmp_path):
    tensorfile.write_sharded(tmp_path, Memory(arrays(), metadata={"format": "pt"}), 100)
    return tmp_path / tensorfile.INDEX


def test_shards(tmp_path):
    sharded(tmp_path)
    found = io.open_directory(tmp_path)
    assert_same(found, arrays())
    assert found.where == str(tmp_path) and found.metadata == {"format": "pt"}


def test_missing_shards_are_all_named(tmp_path):
    index = sharded(tmp_path)
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in files[1:3]:
        (tmp_path / name).unlink()
    line = problem(io.open_directory, tmp_path)
    assert all(name in line for name in files[1:3]) and files[0] not in line


def test_tensors_that_the_index_promises_in_vain(tmp_path):
    index = sharded(tmp_path)
    values = json.loads(index.read_text())
    file = values["weight_map"]["w0"]
    values["weight_map"] |= {"ghost": file, "phantom": file}
    index.write_text(json.dumps(values))
    assert "the shards lack ghost, phantom" in problem(io.open_directory, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(tmp_path, text):
    sharded(tmp_path).write_text(text)
    assert "no index of shards" in problem(io.open_directory, tmp_path)


def test_an_index_cannot_point_elsewhere(tmp_path):
    index = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "must lie beside the index" in problem(io.open_directory, tmp_path)


def test_pytorch_files_without_torch(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    line = problem(io.open_directory, tmp_path)
    assert "needs torch" in line and "pip install 'lm-core[torch]'" in line


class FakeTensor:
    """As much of torch.Tensor as is used."""

    def __init__(self, array, dtype):
        self.array, self.dtype, self.shape = array, dtype, array.shape

    def contiguous(self):
        return self

    def view(self, dtype):
        assert dtype == "torch.int16"
        return FakeTensor(self.array.view(np.int16), dtype)

    def numpy(self):
        return self.array


def test_pytorch_files_are_read_as_weights_only(tmp_path, monkeypatch):
    asked = {}
    bf = cast(np.float32([1.5, -2]), BFLOAT16)
    state = {
        "a": FakeTensor(np.ones((2, 3), np.float32), "torch.float32"),
        "b": FakeTensor(bf, "torch.bfloat16"),
    }

    def load(path, **options):
        asked.update(options)
        return state

    fake = types.ModuleType("torch")
    fake.load, fake.Tensor = load, FakeTensor
    fake.bfloat16, fake.int16 = "torch.bfloat16", "torch.int16"
    monkeypatch.setitem(sys.modules, "torch", fake)
    (tmp_path / "m.bin").touch()
    found = io.open_file(tmp_path / "m.bin")
    assert_same(found, {"a": np.ones((2, 3), np.float32), "b": bf})
    assert asked["weights_only"] is True
    state["epoch"] = 3
    assert "holds more than tensors (epoch)" in problem(io.open_file, tmp_path / "m.bin")
    state["epoch"] = FakeTensor(np.ones(1, complex), "torch.qint8")
    assert "tensors of type qint8" in problem(io.open_file, tmp_path / "m.bin")

    def refuse(path, **options):
        raise RuntimeError("Weights only load failed\nbecause of os.system")

    fake.load = refuse
    line = problem(io.open_file, tmp_path / "m.bin")
    assert "cannot read it as plain weights (Weights only load failed)" in line


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_real_torch_refuses_to_unpickle(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    state = {"a": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.arange(3)}
    torch.save(state, tmp_path / f"m{suffix}")
    found = dict(stream(io.open_file(tmp_path / f"m{suffix}")))
    assert found["b"].dtype == BFLOAT16 and np.array_equal(cast(found["b"], F32), np.ones(3))
    torch.save({"a": types.SimpleNamespace()}, tmp_path / f"m{suffix}")
    assert "cannot read it as plain weights" in problem(io.open_file, tmp_path / f"m{suffix}")


def parameters(dtypes):
    from mindspore import Parameter, Tensor

    return {
        name: Parameter(Tensor(np.zeros((4, 3), np.float32), dtype), name=name)
        for name, dtype in dtypes.items()
    }


@pytest.mark.parametrize("on_cpu", [True, False])
def test_parameters_there_and_back(on_cpu, monkeypatch):
    """In place, as on a CPU, and through new tensors, as elsewhere."""
    import mindspore as ms

    from lm_core.parallel import backend

    monkeypatch.setattr(backend, "on_cpu", lambda: on_cpu)

    made = parameters({"a": ms.float32, "b": ms.float16, "c": ms.bfloat16})
    generator = np.random.default_rng(1)
    given = {name: generator.normal(size=(4, 3)).astype(np.float32) for name in made}
    told = []
    io.assign(made, Memory(given), told.append)
    assert told == [48] * 3
    kinds = {"a": F32, "b": np.dtype("<f2"), "c": BFLOAT16}
    expected = {name: cast(given[name], kinds[name]) for name in made}
    assert_same(io.Parameters(made), expected)
    # From narrow types too, bit for bit.
    io.assign(made, Memory(expected))
    assert_same(io.Parameters(made), expected)
    io.assign(made, Memory({"a": expected["c"]}))
    assert np.array_equal(made["a"].asnumpy(), cast(expected["c"], F32))


def test_assigned_values_are_copies():
    import mindspore as ms

    made = parameters({"a": ms.float32})
    given = np.ones((3, 4), np.float32)
    io.assign(made, Memory({"a": given.T}))
    given[:] = 7
    assert (made["a"].asnumpy() == 1).all()


def test_what_does_not_fit_is_all_named_and_nothing_is_assigned():
    import mindspore as ms

    made = parameters({"a": ms.float32, "b": ms.float32})
    ones = np.ones((4, 3), np.float32)
    with pytest.raises(CheckpointError) as caught:
        io.assign(made, Memory({"a": ones, "b": ones.T, "zzz": ones}, "file"))
    assert len(caught.value.problems) == 2
    assert "b is [3, 4] and the model has [4, 3]" in caught.value.problems[0]
    assert "zzz" in caught.value.problems[1] and "no such parameter" in caught.value.problems[1]
    assert not made["a"].asnumpy().any()


def test_files_carried_along(tmp_path):
    for name in ("vocab.json", "generation_config.json", "config.json", "model.safetensors", "x"):
        (tmp_path / name).touch()
    assert sorted(io.carried_files(tmp_path)) == ["generation_config.json", "vocab.json"]
