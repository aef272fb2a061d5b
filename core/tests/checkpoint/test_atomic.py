"""Directories that are whole or absent: damage, failures, kills, and what belongs to others."""

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm_core.checkpoint import atomic
from lm_core.checkpoint.atomic import (
    MANIFEST,
    check,
    new_directory,
    new_file,
    read_manifest,
    recover,
    remove_directory,
    require_space,
    verify,
)
from lm_core.errors import CheckpointError


def fill(directory, text="one", files=("config.json", "model.safetensors", "deep/er/x.bin")):
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text} {name}" * 50)


def saved(target, text="one", **options):
    with new_directory(target, **options) as directory:
        fill(directory, text)
    return target


def only(directory, *names):
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)


def test_a_new_directory_appears_whole(tmp_path):
    target = tmp_path / "a" / "b" / "ckpt"
    with new_directory(target) as directory:
        fill(directory)
        assert not target.exists() and directory.parent == target.parent
    assert verify(target) == []
    check(target)
    names = ["config.json", "deep/er/x.bin", "model.safetensors"]
    assert sorted(read_manifest(target)) == names
    only(target.parent, "ckpt")
    os.umask(mask := os.umask(0))
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / "ckpt") as directory:
        fill(directory)
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "ckpt") as directory:
        fill(directory)
        raise KeyboardInterrupt
    only(tmp_path)


def test_an_exception_leaves_the_old_one(tmp_path):
    target = saved(tmp_path / "ckpt")
    with pytest.raises(RuntimeError), new_directory(target, overwrite=True) as directory:
        fill(directory, "two")
        raise RuntimeError
    assert verify(target) == [] and (target / "config.json").read_text().startswith("one")
    only(tmp_path, "ckpt")


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    target = saved(tmp_path / "ckpt")
    (target / "old_shard.safetensors").write_text("not in the manifest")
    with pytest.raises(CheckpointError, match="holds a checkpoint; it is replaced only if asked"):
        saved(target)
    with new_directory(target, overwrite=True) as directory:
        (directory / "config.json").write_text("two")
    assert (target / "config.json").read_text() == "two"
    assert verify(target) == []
    # What the first one wrote is gone, what somebody else put there stays.
    only(target, "config.json", MANIFEST, "old_shard.safetensors")
    only(tmp_path, "ckpt")


def test_exchange_works_here(tmp_path):
    """These tests must exercise the single system call, not only the way around it."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic._exchange(tmp_path / "a", tmp_path / "b")
    only(tmp_path / "a", "b")


def test_the_target_is_there_at_every_moment(tmp_path):
    target = saved(tmp_path / "ckpt")
    stop, seen = threading.Event(), []

    def watch():
        while not stop.is_set():
            seen.append((target / "config.json").exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i in range(30):
        saved(target, f"text {i}", overwrite=True)
    stop.set()
    watcher.join()
    assert len(seen) > 100 and all(seen)


def test_files_of_others_stay_and_are_not_vouched_for(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "vocab.json").write_text("{}")
    saved(target)
    assert (target / "vocab.json").read_text() == "{}"
    assert "vocab.json" not in read_manifest(target)
    (target / "vocab.json").write_text("{1}")
    assert verify(target) == []
    # Once a checkpoint brings such a file, it is the checkpoint's.
    with new_directory(target, overwrite=True) as directory:
        (directory / "vocab.json").write_text("[]")
    assert (target / "vocab.json").read_text() == "[]" and "vocab.json" in read_manifest(target)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.ckpt"])
def test_weights_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / name).write_text("precious")
    with pytest.raises(CheckpointError, match=f"holds weights without {MANIFEST}"):
        saved(tmp_path / "hf", overwrite=True)
    assert (tmp_path / "hf" / name).read_text() == "precious"
    only(tmp_path, "hf")


def test_folders_of_others_are_not_touched(tmp_path):
    target = saved(tmp_path / "ckpt")
    (target / "notes").mkdir()
    with pytest.raises(CheckpointError, match="holds notes; a checkpoint directory has no folders"):
        saved(target, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file; a directory is to be written there"):
        saved(target / "config.json")


def test_an_empty_directory_and_a_link_are_targets(tmp_path):
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    saved(tmp_path / "link", "two", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "config.json").read_text().startswith("two")
    only(tmp_path, "empty", "link")


def test_a_damaged_checkpoint_can_be_replaced(tmp_path):
    target = saved(tmp_path / "ckpt")
    (target / MANIFEST).write_text("{")
    # Nothing says whose the folder is any more.
    with pytest.raises(CheckpointError, match="holds deep"):
        saved(target, overwrite=True)
    shutil.rmtree(target / "deep")
    with new_directory(target, overwrite=True) as directory:
        (directory / "config.json").write_text("two")
    assert verify(target) == [] and (target / "config.json").read_text() == "two"
    assert not (target / "model.safetensors").exists()


def test_every_damage_is_found_and_named(tmp_path):
    """Random flips and truncations of every file, the manifest too."""
    target = tmp_path / "ckpt"
    generator = random.Random(0)
    saved(target)
    names = [*read_manifest(target), MANIFEST]
    for turn in range(160):
        name = names[turn % len(names)]
        path = target / name
        data = path.read_bytes()
        if turn % 3:
            changed = bytearray(data)
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        else:
            changed = data[: generator.randrange(len(data))]
        path.write_bytes(changed)
        problems = verify(target)
        assert len(problems) == 1 and problems[0].startswith(f"{path}: "), (turn, problems)
        with pytest.raises(CheckpointError):
            check(target)
        path.write_bytes(data)
    assert verify(target) == []


def test_missing_files_are_named_together(tmp_path):
    target = saved(tmp_path / "ckpt")
    (target / "config.json").unlink()
    (target / "deep/er/x.bin").unlink()
    problems = verify(target)
    assert len(problems) == 2 and all("missing" in problem for problem in problems)
    (target / MANIFEST).unlink()
    (problem,) = verify(target)
    assert MANIFEST in problem and "this one was not finished" in problem


def test_bytes_that_json_would_forgive_are_found(tmp_path):
    target = saved(tmp_path / "ckpt")
    text = (target / MANIFEST).read_text()
    for other in (text + "\n", text.replace("\n", "\t", 1), json.dumps(json.loads(text))):
        (target / MANIFEST).write_text(other)
        assert "damaged" in verify(target)[0]


def test_a_full_disk_keeps_the_old_one_and_says_so(tmp_path):
    target = saved(tmp_path / "ckpt")
    with (
        pytest.raises(CheckpointError, match="No space left .* unchanged; free some space"),
        new_directory(target, overwrite=True),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert verify(target) == []
    only(tmp_path, "ckpt")


def test_a_really_full_disk(tmp_path):
    """/dev/full fails as a full disk does, when the bytes are written."""
    target = saved(tmp_path / "ckpt")
    with (
        pytest.raises(CheckpointError, match="No space left"),
        new_directory(target, overwrite=True),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert verify(target) == []


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), new_directory(tmp_path / "ckpt"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(FileNotFoundError, match="nowhere"), new_file(tmp_path / "x"):
        (tmp_path / "nowhere").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_place(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="choose a directory that can be written"):
        saved(tmp_path / "ckpt")


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match="cannot be written .*Not a directory"):
        saved(tmp_path / "x" / "ckpt")


def test_new_file(tmp_path):
    path = tmp_path / "sub" / "x.txt"
    with new_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), new_file(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"
    only(path.parent, "x.txt")


def test_space(tmp_path):
    require_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(CheckpointError, match=r"B are free here; 1000000000\.0 GB are needed"):
        require_space(tmp_path / "not" / "yet", 10**18)


def test_removing(tmp_path):
    saved(tmp_path / "ckpt")
    remove_directory(tmp_path / "ckpt")
    only(tmp_path)


def test_a_directory_that_stepped_aside_comes_back(tmp_path):
    target = saved(tmp_path / "ckpt")
    target.rename(tmp_path / ".ckpt.old-host-with-dashes-1-aa")
    recover(target)
    assert verify(target) == []
    recover(tmp_path / "never")
    only(tmp_path, "ckpt")


def test_what_the_dead_left_is_cleared_and_the_living_is_not(tmp_path):
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".ckpt.tmp-{host}-{dead.pid}-aa", f".ckpt.tmp-{host}-{os.getpid()}-bb"]
    names += [f".ckpt.tmp-other-{dead.pid}-cc", ".ckpt.tmp-odd"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "big").touch()
    saved(tmp_path / "ckpt")
    only(tmp_path, "ckpt", *names[1:])


WRITER = """
import sys
from pathlib import Path
from lm_core.checkpoint import atomic
target, exchange = Path(sys.argv[1]), sys.argv[2] == "True"
if not exchange:
    atomic._exchange = lambda a, b: False
for i in range(int(sys.argv[3]), 10**9):
    with atomic.new_directory(target, overwrite=True) as directory:
        for name in ("a", "b", "c"):
            (directory / name).write_bytes(str(i).encode() * (1 << 10 + i % 8))
    print(i, flush=True)
"""


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_any_moment(tmp_path, exchange):
    """Always a verified checkpoint, never older than the last that was reported as written."""
    target = tmp_path / "ckpt"
    generator = random.Random(exchange)
    newest, environment = 0, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(15):
        command = [sys.executable, "-c", WRITER, str(target), str(exchange), str(newest + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        first = process.stdout.readline()
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        reported = [int(line) for line in [first, *process.stdout.read().split()]]
        process.wait()
        recover(target)
        assert verify(target) == []
        data = (target / "a").read_bytes()
        found = next(
            i
            for i in range(reported[-1], reported[-1] + 3)
            if data == str(i).encode() * (1 << 10 + i % 8)
        )
        newest = found
    saved(target, overwrite=True)
    only(tmp_path, "ckpt")


def test_paths_as_text(tmp_path):
    with new_directory(str(tmp_path / "ckpt")) as directory:
        assert isinstance(directory, Path)
        fill(directory)
    assert verify(str(tmp_path / "ckpt")) == []
