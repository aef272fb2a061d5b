"""MindRecord files: all of a file or nothing, and errors that say what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lm_core.data import mindrecord
from lm_core.data.mindrecord import RecordWriter, find_records, iterate, open_records
from lm_core.errors import DataError


def first_ids(path):
    files = find_records(path)
    return [int(row["input_ids"][0]) for row in iterate(open_records(files), files)]


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_written_rows_are_read(records, tmp_path):
    records(tmp_path / "new" / "x.mindrecord", 700)
    assert first_ids(tmp_path / "new") == list(range(700))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "x.mindrecord",
        "x.mindrecord.db",
    ]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new" / "x.mindrecord").stat().st_mode & 0o777 == 0o666 & ~mask


def test_splits(records, tmp_path):
    records(tmp_path / "x.mindrecord", 700, splits=3)
    names = [f"x.mindrecord{k}" for k in range(3)]
    assert [path.name for path in find_records(tmp_path)] == names
    assert [path.name for path in find_records(tmp_path / "x.mindrecord")] == names
    assert sorted(first_ids(tmp_path)) == list(range(700))
    alone = [first_ids(tmp_path / name) for name in names]
    assert all(alone)
    assert sorted(sum(alone, [])) == list(range(700))


def test_many_splits_come_in_order(records, tmp_path):
    records(tmp_path / "x.mindrecord", 12, splits=12)
    (tmp_path / "y").mkdir()
    for k in (2, 10, 9):
        records(tmp_path / "y" / f"z.mindrecord{k}", 1, start=k)
    assert [path.name for path in find_records(tmp_path)] == [
        *(f"x.mindrecord{k:02}" for k in range(12)),
        "z.mindrecord2",
        "z.mindrecord9",
        "z.mindrecord10",
    ]
    assert first_ids(tmp_path / "y") == [2, 9, 10]


def test_a_folder_gives_only_records(records, tmp_path):
    records(tmp_path / "a.mindrecord", 2)
    records(tmp_path / "deep" / "b-mindrecord", 2, start=2)
    records(tmp_path / ".hidden" / "c.mindrecord", 2)
    (tmp_path / "notes.mindrecord.txt").write_text("x")
    (tmp_path / "d.mindrecord").mkdir()
    assert first_ids(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("length", [1, 1025, 100_000, 2_000_000])
def test_rows_of_any_length(tmp_path, length):
    row = np.random.default_rng(0).integers(-100, 2**31 - 1, length).astype(np.int32)
    with RecordWriter(tmp_path / "x.mindrecord", ["input_ids"]) as writer:
        writer.write({"input_ids": row})
        writer.write({"input_ids": row[::-1].copy()})
    files = find_records(tmp_path)
    read = [entry["input_ids"] for entry in iterate(open_records(files), files)]
    assert np.array_equal(read, [row, row[::-1]])


def test_small_files_are_small(records, tmp_path):
    records(tmp_path / "x.mindrecord", 3)
    assert (tmp_path / "x.mindrecord").stat().st_size < 13 << 20


def test_equal_rows_give_equal_bytes(records, tmp_path):
    for name in "ab":
        records(tmp_path / name / "x.mindrecord", 300, splits=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_a_new_run_replaces_all_files_of_the_old(records, tmp_path, before, after):
    records(tmp_path / "x.mindrecord", 10, splits=before)
    records(tmp_path / "x.mindrecord-other.mindrecord", 1, start=50)
    records(tmp_path / "x.mindrecord", 20, start=100, splits=after)
    assert len(list(tmp_path.iterdir())) == 2 * after + 2
    assert sorted(first_ids(tmp_path)) == [50, *range(100, 120)]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("rows", [0, 3, 600])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_changes_nothing(records, tmp_path, old, rows, error):
    if old:
        records(tmp_path / "x.mindrecord", 4)
    before = contents(tmp_path)
    with pytest.raises(error), RecordWriter(tmp_path / "x.mindrecord", ["input_ids"]) as writer:
        for _ in range(rows):
            writer.write({"input_ids": np.zeros(5, np.int32)})
        raise error
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2 * old


@pytest.mark.parametrize("fails_at", range(9))
def test_a_failure_while_files_are_exchanged_changes_nothing(
    records, tmp_path, monkeypatch, fails_at
):
    """Two old files step aside, their folder gets its name, six new files take their places."""
    records(tmp_path / "x.mindrecord", 4)
    before = contents(tmp_path)
    calls = []

    def failing(function):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) == fails_at + 1:
                raise KeyboardInterrupt
            function(*arguments)

        return call

    replace, rename = os.replace, os.rename
    monkeypatch.setattr(mindrecord.os, "replace", failing(replace))
    monkeypatch.setattr(mindrecord.os, "rename", failing(rename))
    with pytest.raises(KeyboardInterrupt):
        records(tmp_path / "x.mindrecord", 9, start=100, splits=3)
    assert len(calls) > fails_at
    monkeypatch.undo()
    assert contents(tmp_path) == before
    records(tmp_path / "x.mindrecord", 9, start=100, splits=3)
    assert first_ids(tmp_path) == list(range(100, 109))


KILLED = """
import os, signal, sys
import numpy as np
from lm_core.data import mindrecord
path, fails_at = sys.argv[1], int(sys.argv[2])
replace, rename, calls = os.replace, os.rename, []
def dying(function):
    def call(*arguments):
        calls.append(arguments)
        if len(calls) == fails_at + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        function(*arguments)
    return call
mindrecord.os.replace, mindrecord.os.rename = dying(replace), dying(rename)
with mindrecord.RecordWriter(path, ["input_ids"]) as writer:
    for k in range(100, 110):
        writer.write({"input_ids": np.full(5, k, np.int32)})
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", range(5))
def test_killed_while_files_are_exchanged(records, tmp_path, fails_at):
    """Never a mixture; the next writer puts the old files back or ends the exchange."""
    records(tmp_path / "x.mindrecord", 4)
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "x.mindrecord"), str(fails_at)], timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    try:
        assert first_ids(tmp_path / "x.mindrecord") in ([0, 1, 2, 3], list(range(100, 110)))
    except DataError as error:
        assert "no such file" in str(error) or "index" in str(error)
    with pytest.raises(ZeroDivisionError), RecordWriter(tmp_path / "x.mindrecord", ["input_ids"]):
        raise ZeroDivisionError
    assert contents(tmp_path) == before


def test_a_killed_writer_leaves_nothing_that_stays(records, tmp_path):
    script = KILLED.replace("writer.write", "k == 103 and time.sleep(60); writer.write")
    script = f"import time\n{script}"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x.mindrecord"), "99"])
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not [path for path in tmp_path.rglob("*") if path.parent == tmp_path and path.is_file()]
    records(tmp_path / "x.mindrecord", 2)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_living_writer_is_left_alone(records, tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        prefix = mindrecord._scratch_prefix(tmp_path / "x.mindrecord")
        other = tmp_path / f"{prefix}{process.pid}"
        other.mkdir()
        records(tmp_path / "x.mindrecord", 2)
        assert other.is_dir()
        process.kill()
    records(tmp_path / "x.mindrecord", 2)
    assert not other.exists()


@pytest.mark.parametrize(
    ("path", "splits", "message"),
    [
        ("x.txt", 1, r"x.txt must end in mindrecord"),
        ("x.mindrecord", 0, "num_splits: is 0; must be from 1 to 1000"),
        ("x.mindrecord", 1001, "num_splits: is 1001; must be from 1 to 1000"),
        ("folder.mindrecord", 1, "is a folder"),
        ("file/x.mindrecord", 1, "cannot be written"),
    ],
)
def test_impossible_outputs(tmp_path, path, splits, message):
    (tmp_path / "folder.mindrecord").mkdir()
    (tmp_path / "file").write_text("x")
    writer = None
    with pytest.raises(DataError, match=message):
        writer = RecordWriter(tmp_path / path, ["input_ids"], splits)
        writer.__enter__()


def write_zeros(path, rows, splits=1):
    with RecordWriter(path, ["input_ids"], splits) as writer:
        for _ in range(rows):
            writer.write({"input_ids": np.zeros(5, np.int32)})


@pytest.mark.parametrize(
    ("name", "rows", "splits", "message"),
    [
        ("x.mindrecord", 0, 1, "no row to write"),
        ("x.mindrecord", 2, 3, "3 files for 2 rows"),
        ("a'b.mindrecord", 2, 1, "cannot be written: .*File name should not contain"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, rows, splits, message):
    with pytest.raises(DataError, match=message):
        write_zeros(tmp_path / name, rows, splits)
    assert not list(tmp_path.iterdir())


def test_finding_nothing(tmp_path):
    with pytest.raises(DataError, match="holds no file whose name ends in mindrecord"):
        find_records(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find_records(tmp_path / "x.mindrecord")
    with pytest.raises(DataError, match="no such file or folder"):
        find_records(tmp_path / "nowhere" / "x.mindrecord")


def test_a_missing_index(records, tmp_path):
    records(tmp_path / "x.mindrecord", 2)
    (tmp_path / "x.mindrecord.db").unlink()
    with pytest.raises(DataError, match=r"its index x.mindrecord.db is missing"):
        find_records(tmp_path)


def test_a_renamed_file_says_its_old_name(records, tmp_path):
    records(tmp_path / "x.mindrecord", 2)
    for suffix in ("", ".db"):
        (tmp_path / f"x.mindrecord{suffix}").rename(tmp_path / f"y.mindrecord{suffix}")
    with pytest.raises(DataError, match=r"its index says 'x.mindrecord'; .* cannot be renamed"):
        first_ids(tmp_path)


def test_moved_files_are_read(records, tmp_path):
    records(tmp_path / "a" / "x.mindrecord", 2)
    (tmp_path / "a").rename(tmp_path / "b c \u4f60")
    assert first_ids(tmp_path) == [0, 1]


@pytest.mark.parametrize("damage", ["shortened", "empty", "index", "text"])
def test_damaged_files(records, tmp_path, damage):
    path = records(tmp_path / "x.mindrecord", 50)
    if damage == "shortened":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("this is no MindRecord\n" * 100)
    else:
        Path(f"{path}.db").write_bytes(b"this is no data base")
    with pytest.raises(DataError) as caught:
        first_ids(tmp_path)
    assert str(path) in str(caught.value)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_relative_paths(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records("x.mindrecord", 2)
    assert first_ids("x.mindrecord") == first_ids(".") == [0, 1]
