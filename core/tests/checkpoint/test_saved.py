"""The checkpoints below a folder, and which of them is used."""

import os
import shutil
from pathlib import Path

import pytest

from lm_core.checkpoint import atomic
from lm_core.checkpoint.saved import (
    CONFIG,
    STATE,
    checkpoints,
    get_last_checkpoint,
    newest,
    step_of,
)
from lm_core.errors import CheckpointError


def save(path: Path, *files: str) -> Path:
    with atomic.new_directory(path) as scratch:
        for name in files or (CONFIG, STATE):
            (scratch / name).write_text(f"{path.name} {name}")
    return path


def test_all_of_them_the_last_step_first(tmp_path):
    run = tmp_path / "checkpoint" / "rank_0"
    for step in (9, 10, 100):
        save(run / f"CKP-{step}")
    found = [run / f"CKP-{step}" for step in (100, 10, 9)]
    for place in (tmp_path, run.parent, run):
        assert checkpoints(place) == found and newest(str(place)) == found[0]
    assert checkpoints(found[1]) == [found[1]]
    assert checkpoints(tmp_path / "nowhere") == [] and newest(tmp_path / "nowhere") is None
    assert [step_of(Path(name)) for name in ("CKP-7", "a-1/b", "x2y-03")] == [7, -1, 3]


def test_hidden_ones_do_not_count(tmp_path):
    save(tmp_path / ".earlier-1" / "rank_0" / "CKP-9")
    save(tmp_path / ".CKP-8.tmp-host-1-aa")
    assert checkpoints(tmp_path) == []


def test_a_manifest_of_others_is_no_checkpoint(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web page"}')
    assert checkpoints(tmp_path) == [] and newest(tmp_path, CONFIG) is None


def test_of_two_with_one_name_the_later(tmp_path):
    first, second = save(tmp_path / "a" / "CKP-3"), save(tmp_path / "b" / "CKP-3")
    os.utime(second / atomic.MANIFEST, (1, 1))
    assert checkpoints(tmp_path) == [first, second]


def test_what_they_must_have_been_written_with(tmp_path):
    model = save(tmp_path / "model-5", CONFIG)
    both = save(tmp_path / "CKP-4")
    assert checkpoints(tmp_path, STATE) == [both] and checkpoints(tmp_path, CONFIG) == [model, both]
    # It is a training checkpoint still, and damaged.
    (both / STATE).unlink()
    assert checkpoints(tmp_path, STATE) == [both]
    with pytest.raises(CheckpointError, match=rf"CKP-4/{STATE}: missing"):
        newest(tmp_path, STATE)


@pytest.mark.parametrize("gone", [atomic.MANIFEST, STATE, CONFIG])
def test_incomplete_ones_are_named_and_passed_over(tmp_path, caplog, gone):
    for step in (1, 2, 3):
        save(tmp_path / f"CKP-{step}")
    (tmp_path / "CKP-3" / gone).unlink()
    (tmp_path / "CKP-2" / CONFIG).write_text("edited")
    for needs in (STATE, CONFIG, ""):
        caplog.clear()
        assert newest(tmp_path, needs) == tmp_path / "CKP-1"
        first, second, last = caplog.messages
        assert first.startswith(f"{tmp_path}/CKP-3/{gone}: missing")
        assert second.startswith(f"{tmp_path}/CKP-2/{CONFIG}: ") and "before it" in second
        assert last == f"using {tmp_path}/CKP-1, the newest that is undamaged"
    shutil.rmtree(tmp_path / "CKP-1")
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)
    assert len(caught.value.problems) == 2


def test_one_that_stepped_aside_comes_back_wherever_it_is(tmp_path):
    path = save(tmp_path / "checkpoint" / "rank_0" / "CKP-3")
    path.rename(path.parent / ".CKP-3.old-host-1-aa")
    assert newest(tmp_path) == path and not atomic.verify(path)


def test_the_last_one_of_a_folder(tmp_path):
    """Ours wherever they lie below it; of files of others the one that was written last."""
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; must be .*\.ckpt; give"):
        get_last_checkpoint(tmp_path)
    for number, name in enumerate(("b.ckpt", "a.safetensors", "c.txt")):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (number, number))
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "a.safetensors")
    for step in (9, 10):
        save(tmp_path / "rank_0" / f"CKP-{step}")
    last = tmp_path / "rank_0" / "CKP-10"
    assert get_last_checkpoint(str(tmp_path)) == get_last_checkpoint(last) == str(last)
    (last / STATE).unlink()
    assert get_last_checkpoint(tmp_path / "rank_0") == str(tmp_path / "rank_0" / "CKP-9")
