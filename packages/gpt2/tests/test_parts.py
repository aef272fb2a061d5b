"""Loading and resuming checkpoints of several ranks, whatever degrees wrote them."""

import shutil

import numpy as np
import pytest

from lm_core import AutoModel
from lm_core.checkpoint import ckpt, io, ranks
from lm_core.checkpoint import parts as layouts
from lm_core.checkpoint.layout import Memory
from lm_core.cli import main
from lm_core.errors import CheckpointError
from lm_core.parallel import strategy
from lm_core.testing import parts, tiny
from lm_core.testing.parity import assert_same
from lm_gpt2 import SPEC

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": 16, "vocab_size": 52}


@pytest.fixture(scope="module")
def config():
    return tiny.config(SPEC, **SIZES)


@pytest.fixture(scope="module")
def whole(config):
    return parts.whole(SPEC, config)


def load(path, config, own, rank, scratch, auto_trans=True, **more):
    return ranks.open_for(path, config, SPEC, own, rank, auto_trans, scratch, **more)


EIGHT = {"dp": 2, "tp": 2, "pp": 2}
DEGREES = [{}, {"tp": 4}, {"pp": 2}, {"dp": 2}, EIGHT, {"tp": 2, "vocab_emb_dp": False}]


@pytest.mark.parametrize("into", DEGREES, ids=str)
@pytest.mark.parametrize("out_of", DEGREES, ids=str)
def test_each_rank_loads_its_part_of_any_layout(tmp_path, config, whole, out_of, into):
    source, own = parts.partition(SPEC, config, **out_of), parts.partition(SPEC, config, **into)
    folder = parts.write_all(tmp_path / "checkpoint", SPEC, whole, source)
    for rank in range(own.degrees.world_size):
        found = load(folder, config, own, rank, tmp_path / "scratch")
        assert_same(found, parts.cut(whole[0], own, rank))


def test_parts_of_other_degrees_are_recut_only_if_asked(tmp_path, config, whole):
    folder = parts.write_all(tmp_path, SPEC, whole, parts.partition(SPEC, config, tp=2))
    with pytest.raises(CheckpointError) as error:
        load(folder, config, parts.partition(SPEC, config, pp=2), 0, tmp_path / "scratch", False)
    assert "written with data_parallel 1, model_parallel 2, pipeline_stage 1; this run has" in str(
        error.value
    )
    assert "auto_trans_ckpt: True" in str(error.value)
    assert not (tmp_path / "scratch").exists()


def test_copies_of_data_parallel_ranks_are_whole_models(tmp_path, config, whole):
    folder = parts.write_all(tmp_path, SPEC, whole, parts.partition(SPEC, config, dp=2))
    own = parts.partition(SPEC, config, tp=2)
    found = load(folder, config, own, 1, tmp_path / "scratch", False)
    assert_same(found, parts.cut(whole[0], own, 1))
    assert AutoModel.from_pretrained(folder).config.num_layers == 2


def test_damage_is_found_before_anything_is_used(tmp_path, config, whole):
    own = parts.partition(SPEC, config, tp=2)
    folder = parts.write_all(tmp_path, SPEC, whole, own)
    path = folder / "rank_1" / "CKP-4" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for other in (own, parts.partition(SPEC, config)):
        with pytest.raises(CheckpointError, match="is not as it was written"):
            load(folder, config, other, other.degrees.world_size - 1, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_another_model_is_refused(tmp_path, config, whole):
    folder = parts.write_all(tmp_path, SPEC, whole, parts.partition(SPEC, config, tp=2))
    other = tiny.config(SPEC, **{**SIZES, "hidden_size": 64})
    for into in ({"tp": 2}, {"tp": 4}, {}):
        with pytest.raises(CheckpointError, match="use the configuration"):
            load(folder, other, parts.partition(SPEC, other, **into), 0, tmp_path / "scratch")
    assert not list(tmp_path.glob("scratch/*/rank_*"))


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("into", [{}, {"tp": 4}, {"pp": 2, "dp": 2}, {**EIGHT}], ids=str)
def test_a_run_goes_on_with_other_degrees(tmp_path, config, whole, into, shard):
    source = parts.partition(SPEC, config, **EIGHT, optimizer_shard=True)
    own = parts.partition(SPEC, config, **into, optimizer_shard=shard)
    folder = parts.write_all(tmp_path / "checkpoint", SPEC, whole, source)
    for rank in range(own.degrees.world_size):
        found = ranks.resume_directory(folder, None, own, rank, SPEC, tmp_path / "scratch")
        for file, tensors in zip(("model", "optimizer"), whole, strict=True):
            made = io.open_file(found / f"{file}.safetensors")
            assert_same(made, parts.cut(tensors, own, rank))
        assert (found / "training.json").read_text() == '{"version": 1, "step": 4}'
        same = own.degrees.world_size == 8 and shard
        assert found.is_relative_to(folder) == same


def test_one_process_goes_on_as_eight(tmp_path, config, whole):
    folder = parts.write_all(tmp_path / "checkpoint", SPEC, whole, parts.partition(SPEC, config))
    own = parts.partition(SPEC, config, **EIGHT, optimizer_shard=True)
    found = ranks.resume_directory(folder, 4, own, 5, SPEC, tmp_path / "scratch")
    assert layouts.read_layout(found) == layouts.Layout.of(own.degrees, 5)
    made = io.open_file(found / "optimizer.safetensors")
    assert_same(made, parts.cut(whole[1], own, 5))


def test_missing_ranks_are_named(tmp_path, config, whole):
    folder = parts.write_all(tmp_path, SPEC, whole, parts.partition(SPEC, config, **EIGHT))
    for rank in (3, 6):
        shutil.rmtree(folder / f"rank_{rank}")
    with pytest.raises(CheckpointError) as error:
        load(folder, config, parts.partition(SPEC, config), 0, tmp_path / "scratch")
    assert "the part of rank 3, 6 is missing; all 8 ranks" in str(error.value)


def test_parts_of_other_machines_need_not_be_here(tmp_path, config, whole):
    """Where the cut is the same and the step is named, a rank reads its own part alone."""
    own = parts.partition(SPEC, config, **EIGHT)
    for step in (4, 8):
        for rank in (4, 5, 6, 7):
            parts.write(tmp_path / f"rank_{rank}" / f"CKP-{step}", SPEC, whole, own, rank)
    found = load(tmp_path, config, own, 5, tmp_path / "scratch", step=4)
    assert_same(found, parts.cut(whole[0], own, 5))
    resumed = ranks.resume_directory(tmp_path, 8, own, 5, SPEC, tmp_path / "scratch")
    assert resumed == tmp_path / "rank_5" / "CKP-8"
    for wanted in (4, None):
        with pytest.raises(CheckpointError, match="the part of rank 0, 1, 2, 3 is missing"):
            ranks.resume_directory(
                tmp_path, wanted, parts.partition(SPEC, config, tp=2), 0, SPEC, tmp_path / "new"
            )
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; it has 8, 4; name one"):
        load(tmp_path, config, own, 5, tmp_path / "scratch", step=5)


# What `checkpoint` says of them.


def test_parts_of_a_step_are_one_line(tmp_path, config, whole, capsys):
    own = parts.partition(SPEC, config, **EIGHT)
    folder = parts.write_all(tmp_path / "checkpoint", SPEC, whole, own)
    parts.write_all(tmp_path / "checkpoint", SPEC, whole, own, step=8)
    shutil.rmtree(folder / "rank_5" / "CKP-8")
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "4" and f"ok       {folder}/rank_*/CKP-4" in first
    assert second.split()[0] == "8" and f"partial  {folder}/rank_*/CKP-8" in second
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 15
    assert "rank_*/CKP-8: the part of rank 5 is missing" in said.err


def test_a_damaged_part_is_found(tmp_path, config, whole, capsys):
    own = parts.partition(SPEC, config, tp=2)
    folder = parts.write_all(tmp_path / "checkpoint", SPEC, whole, own)
    (folder / "rank_1" / "CKP-4" / "parallel.json").write_text('{"rank": 9}')
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[-2] for line in lines] == ["partial", "damaged"]


def test_parts_of_others_are_merged_by_their_strategy(tmp_path, config, whole):
    """As MindFormers lays them out: its names, one .ckpt file for each rank."""
    theirs = SPEC.tables["mindformers"].save(whole[0], config)
    cut = {
        name: strategy.Item((1, 2), (0,) + (-1,) * (len(spec.shape) - 1))
        for name, spec in theirs.specs.items()
    }
    for rank in range(2):
        halves = {name: np.split(theirs.read(name), 2)[rank] for name in theirs.specs}
        halves["global_step"] = np.array([3], "<i4")
        ckpt.write(tmp_path / "in" / f"rank_{rank}" / "a.ckpt", Memory(halves))
    (tmp_path / "strategy_rank_0.json").write_text(strategy.to_json(cut, 0))
    own = parts.partition(SPEC, config, pp=2)
    for rank in range(2):
        found = load(tmp_path / "in", config, own, rank, tmp_path / "new", src_strategy=tmp_path)
        expected = parts.cut(whole[0], own, rank)
        assert found.specs.keys() == expected.specs.keys()
        for name in found.specs:
            np.testing.assert_array_equal(found.read(name), expected.read(name))
    with pytest.raises(CheckpointError, match="auto_trans_ckpt: True"):
        load(tmp_path / "in", config, own, 0, tmp_path, False, src_strategy=tmp_path)
    shutil.rmtree(tmp_path / "in" / "rank_1")
    with pytest.raises(CheckpointError, match="the part of rank 1 is missing; all 2 ranks"):
        load(tmp_path / "in", config, own, 0, tmp_path, src_strategy=tmp_path)
