"""The verb `transform`: checkpoints are split, merged and recut to the bit, or not touched."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lm_core import AutoModel
from lm_core.checkpoint import atomic, ckpt, io, tensorfile
from lm_core.checkpoint.layout import Cast, Memory
from lm_core.checkpoint.parts import Layout, write_strategy
from lm_core.cli import main
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy
from lm_core.peft import files as adapters
from lm_core.testing import parts, tiny
from lm_core.testing.parity import assert_same
from lm_gpt2 import SPEC

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": 16, "vocab_size": 52}
LORA = {"pet_type": "lora", "lora_rank": 2, "target_modules": ".*"}
EIGHT = ["data_parallel=2", "model_parallel=2", "pipeline_stage=2"]
TOOL = Path(__file__).parents[3] / "tools" / "transform_ckpt.py"


@pytest.fixture(scope="module")
def config():
    return tiny.config(SPEC, **SIZES)


@pytest.fixture(scope="module")
def tensors(config):
    return parts.whole(SPEC, config)


def transform(source, target, *words):
    degrees = [f"parallel_config.{word}" if "=" in word else word for word in words]
    flags = ["--src_ckpt_dir", str(source), "--dst_ckpt_dir", str(target)]
    return main(["transform", "gpt2", *flags, *degrees])


def write_whole(folder, config, tensors):
    """A training checkpoint of one process."""
    directory = folder / "rank_0" / "CKP-4"
    parts.write(directory, SPEC, tensors, parts.partition(SPEC, config), 0)
    return directory


def with_bits(tensors):
    """bfloat16 weights, one of them a NaN with a payload and one infinite."""
    found = Cast(tensors, "bfloat16")
    arrays = {name: np.array(found.read(name)) for name in found.specs}
    arrays["embedding.weight"].view("<u2")[0, :2] = (0x7FA5, 0xFF80)
    return Memory(arrays)


MODELS = {
    "plain": {},
    "lora": {"pet_config": LORA},
    "classifier": {"task": "text_classification", "num_labels": 3},
    "bfloat16": {"param_init_type": "bfloat16"},
}


@pytest.mark.parametrize(("model", "shard"), [("plain", False), *((m, True) for m in MODELS)])
def test_one_to_eight_to_four_to_one_gives_the_same_bytes(tmp_path, model, shard):
    config = tiny.config(SPEC, **SIZES, **MODELS[model])
    weights, moments = parts.whole(SPEC, config)
    if config.param_init_type == "bfloat16":
        weights = with_bits(weights)
    start = write_whole(tmp_path / "checkpoint", config, (weights, moments))
    degrees = [f"optimizer_shard={shard}", "vocab_emb_dp=False"]
    assert transform(tmp_path, tmp_path / "eight", *EIGHT, *degrees) == 0
    assert transform(tmp_path / "eight", tmp_path / "four", "model_parallel=4", *degrees) == 0
    assert transform(tmp_path / "four", tmp_path / "one") == 0
    assert len(list((tmp_path / "eight").glob("rank_*/model.safetensors"))) == 8
    assert len(list((tmp_path / "four").glob("rank_*/optimizer.safetensors"))) == 4
    assert verify_same(tmp_path / "one", start) >= {"model.safetensors", "optimizer.safetensors"}
    assert atomic.verify(tmp_path / "one") == atomic.verify(tmp_path / "eight") == []


def test_adapters_that_were_saved_alone(tmp_path):
    """As `save_trainable_params` has it: the weights under an adapter are elsewhere."""
    config = tiny.config(SPEC, **SIZES, pet_config=LORA)
    weights, moments = parts.whole(SPEC, config)
    own = {name: weights.read(name) for name in weights.specs if ".lora_" in name}
    start = tmp_path / "run" / "checkpoint" / "rank_0" / "CKP-4"
    with atomic.new_directory(start) as made:
        io.write_config(made, SPEC.name, config)
        adapter = adapters.Adapter(config.pet_config, own, "elsewhere", "sha256:0")
        adapters.write(made, adapter, SPEC, config)
        tensorfile.write(made / "optimizer.safetensors", moments)
        (made / "training.json").write_text('{"version": 1, "step": 4}')
    assert transform(tmp_path / "run", tmp_path / "eight", *EIGHT, "optimizer_shard=True") == 0
    assert transform(tmp_path / "eight", tmp_path / "one") == 0
    assert len(list((tmp_path / "eight").glob("rank_*/adapter_model.safetensors"))) == 8
    assert verify_same(tmp_path / "one", start) >= {"adapter_model.safetensors", "training.json"}


def verify_same(a, b):
    """The names of the files of a checkpoint; both have them with equal bytes."""
    names = {path.name for path in b.iterdir()}
    assert {path.name for path in a.iterdir()} == names
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)
    return names


def test_each_part_is_what_the_partition_says(tmp_path, config, tensors):
    write_whole(tmp_path / "in" / "checkpoint", config, tensors)
    assert transform(tmp_path / "in", tmp_path / "out", *EIGHT, "optimizer_shard=True") == 0
    own = parts.partition(SPEC, config, 2, 2, 2, optimizer_shard=True)
    for rank in range(8):
        for file, whole in zip(("model", "optimizer"), tensors, strict=True):
            made = io.open_file(tmp_path / "out" / f"rank_{rank}" / f"{file}.safetensors")
            assert_same(made, parts.cut(whole, own, rank))


def test_a_merged_model_loads_and_a_part_does_not(tmp_path, capsys):
    model = tiny.model(SPEC, **SIZES)
    hf = tiny.write_hf(model, SPEC, tmp_path / "hf")
    (hf / "generation_config.json").write_text('{"top_k": 3}')
    assert transform(hf, tmp_path / "parts", *EIGHT) == 0
    capsys.readouterr()
    assert main(["checkpoint", "list", str(tmp_path / "parts")]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert (line[0], *line[-2:]) == ("-", "ok", f"{tmp_path}/parts/rank_*")
    for path in (tmp_path / "parts", tmp_path / "parts" / "rank_5"):
        with pytest.raises(CheckpointError, match="was written with data_parallel 2"):
            AutoModel.from_pretrained(path)
    assert transform(tmp_path / "parts", tmp_path / "merged") == 0
    loaded = AutoModel.from_pretrained(tmp_path / "merged")
    for name, values in tiny.weights(model).items():
        np.testing.assert_array_equal(tiny.weights(loaded)[name], values)
    assert (tmp_path / "merged" / "generation_config.json").is_file()


# Strategy files.


@pytest.fixture
def eight(tmp_path, config, tensors):
    """A run of eight ranks with its strategy files, and how it is cut."""
    own = parts.partition(SPEC, config, 2, 2, 2, optimizer_shard=True)
    parts.write_all(tmp_path / "run" / "checkpoint", SPEC, tensors, own)
    for rank in range(8):
        write_strategy(tmp_path / "run", own, rank)
    return tmp_path / "run", own


def test_strategy_files_say_what_they_were_made_of(tmp_path, eight):
    import mindspore

    run, own = eight
    mindspore.merge_pipeline_strategys(str(run / "strategy"), str(tmp_path / "merged.json"))
    for path in (run / "strategy", tmp_path / "merged.json"):
        found = strategy.read(path)
        assert found.stages == strategy.of(own).stages
        assert Layout.of(strategy.degrees(found), 3) == Layout.of(own.degrees, 3)


def test_mindspore_itself_merges_our_parts_by_our_files(tmp_path, eight, tensors):
    import mindspore

    run, _ = eight
    for rank in range(8):
        part = io.open_file(run / "checkpoint" / f"rank_{rank}" / "CKP-4" / "model.safetensors")
        ckpt.write(tmp_path / "src" / f"rank_{rank}" / "a.ckpt", part)
    mindspore.merge_pipeline_strategys(str(run / "strategy"), str(tmp_path / "merged.json"))
    mindspore.transform_checkpoints(
        str(tmp_path / "src"), str(tmp_path / "dst"), "a", str(tmp_path / "merged.json"), None
    )
    made = io.open_file(tmp_path / "dst" / "rank_0" / "a0.ckpt")
    for name in tensors[0].specs:
        np.testing.assert_array_equal(made.read(name), tensors[0].read(name))


def test_a_strategy_file_may_be_the_target(tmp_path, eight, config, tensors):
    run, own = eight
    write_whole(tmp_path / "in", config, tensors)
    flags = ("--dst_ckpt_strategy", str(run / "strategy"))
    assert transform(tmp_path / "in", tmp_path / "out", *flags) == 0
    for rank in range(8):
        made = io.open_file(tmp_path / "out" / f"rank_{rank}" / "optimizer.safetensors")
        assert_same(made, parts.cut(tensors[1], own, rank))


def test_the_tool_merges_files_of_others(tmp_path, eight, tensors, monkeypatch):
    """As MindFormers' card calls it: .ckpt files, MindSpore's own kind of strategy files."""
    run, _ = eight
    for path in sorted((run / "strategy").iterdir()):
        write_protobuf(path, tmp_path / "strategy" / path.with_suffix(".ckpt").name)
    for rank in range(8):
        folder = run / "checkpoint" / f"rank_{rank}" / "CKP-4"
        files = [io.open_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")]
        files.append(Memory({"global_step": np.int32(7).reshape(())}))
        both = io.Joined("both", [(file, file.specs.keys()) for file in files])
        ckpt.write(tmp_path / "src" / f"rank_{rank}" / "gpt2-4_1.ckpt", both)
    words = ["--src_ckpt_strategy", "strategy", "--dst_ckpt_strategy", "None"]
    words += ["--src_ckpt_dir", "src", "--dst_ckpt_dir", "dst", "--prefix", "checkpoint_"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert status.value.code == 0
    made = io.open_file(tmp_path / "dst" / "rank_0" / "checkpoint_0.ckpt")
    assert made.read("global_step") == 7
    for whole in tensors:
        for name in whole.specs:
            np.testing.assert_array_equal(made.read(name), whole.read(name))


def write_protobuf(source, target):
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    values = json.loads(source.read_text())
    made = ParallelStrategyMap(current_stage=values["current_stage"])
    item = made.parallel_strategy_item.add(node_name="op0")
    item.parallel_strategys.stage = values["parallel_strategy_item"]["op0"]["stage"]
    for name, layout in values["parallel_layout_item"].items():
        entry = made.parallel_layout_item.add(param_name=name)
        entry.parallel_layouts.dev_matrix.add().dim.extend(layout["dev_matrix"])
        entry.parallel_layouts.tensor_map.add().dim.extend(layout["tensor_map"])
        entry.parallel_layouts.param_split_shape.add()
        for key in ("field", "opt_weight_shard_size", "opt_weight_shard_step"):
            setattr(entry.parallel_layouts, key, layout[key])
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(made.SerializeToString())


# What is wrong is said in a line, and changes nothing.


def refused(capsys, *words):
    assert transform(*words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not Path(words[1]).exists()
    return "\n".join(line for line in said.splitlines() if line.startswith("error: "))


def test_missing_parts(tmp_path, eight, capsys):
    run, _ = eight
    shutil.rmtree(run / "checkpoint" / "rank_3")
    said = refused(capsys, run, tmp_path / "out")
    assert "the part of rank 3 is missing; all 8 ranks" in said


def test_damaged_part(tmp_path, eight, capsys):
    run, _ = eight
    path = run / "checkpoint" / "rank_6" / "CKP-4" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{path}: is not as it was written" in refused(capsys, run, tmp_path / "out")


def test_the_newest_step_that_all_ranks_have(tmp_path, eight, tensors, capsys):
    run, own = eight
    newer = run / "checkpoint" / "rank_2" / "CKP-8"
    parts.write(newer, SPEC, tensors, own, 2)
    assert transform(run, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["step"] == 4
    assert "there is no checkpoint of step 5; use one of 8, 4" in refused(
        capsys, run, tmp_path / "other", "--step", "5"
    )


def test_strategy_of_another_model(tmp_path, eight, capsys):
    run, _ = eight
    other = parts.partition(SPEC, tiny.config(SPEC, **{**SIZES, "num_layers": 4}), tp=2)
    write_strategy(tmp_path / "other", other, 0)
    place = str(tmp_path / "other" / "strategy")
    assert "does not cut" in refused(capsys, run, tmp_path / "out", "--dst_ckpt_strategy", place)
    (tmp_path / "empty").mkdir()
    place = str(tmp_path / "empty")
    said = refused(capsys, run, tmp_path / "out", "--src_ckpt_strategy", place)
    assert "holds no strategy file" in said
    damaged = tmp_path / "strategy.json"
    damaged.write_text("{")
    said = refused(capsys, run, tmp_path / "out", "--src_ckpt_strategy", str(damaged))
    assert "cannot be read as a strategy file" in said


def test_degrees_that_do_not_fit(tmp_path, eight, capsys):
    said = refused(capsys, eight[0], tmp_path / "out", "model_parallel=3")
    assert "3 does not divide 4 heads" in said
    said = refused(capsys, eight[0], tmp_path / "out", "model_paralel=2")
    assert "parallel_config.model_paralel: unknown key" in said
    flags = ("--dst_ckpt_strategy", str(eight[0] / "strategy"), "model_parallel=2")
    assert "one of them must say" in refused(capsys, eight[0], tmp_path / "out", *flags)


def test_a_target_that_is_there_is_replaced_only_if_asked(tmp_path, eight, capsys):
    run, _ = eight
    assert transform(run, tmp_path / "out", "model_parallel=2") == 0
    before = sorted(path.stat().st_ino for path in (tmp_path / "out").rglob("*"))
    assert transform(run, tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(path.stat().st_ino for path in (tmp_path / "out").rglob("*")) == before
    assert transform(run, tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "rank_1").exists()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_parts_of_two_models(tmp_path, config, tensors, eight, capsys):
    run, own = eight
    other = tiny.config(SPEC, **{**SIZES, "hidden_size": 64})
    strange = parts.partition(SPEC, other, 2, 2, 2, optimizer_shard=True)
    shutil.rmtree(run / "checkpoint" / "rank_1")
    parts.write(run / "checkpoint" / "rank_1" / "CKP-4", SPEC, parts.whole(SPEC, other), strange, 1)
    said = refused(capsys, run, tmp_path / "out")
    assert "of another shape than on the other ranks" in said


def test_killed_in_the_middle(tmp_path, eight):
    """The source is as it was, nothing has the target's name, and the next try cleans up."""
    run, _ = eight
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    target = tmp_path / "out"
    words = ["--src_ckpt_dir", str(run), "--dst_ckpt_dir", str(target)]
    words += ["parallel_config.model_parallel=4"]
    command = [sys.executable, "-m", "lm_gpt2.transform", *words]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".out.tmp-*/rank_1/model.safetensors")):
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert not target.exists()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert transform(run, target, "model_parallel=4") == 0
    assert not list(tmp_path.glob(".out.*"))
