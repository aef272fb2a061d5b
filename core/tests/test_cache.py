"""What is kept for the next process, and who may have put it there."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from lm_core import cache, log


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(log, "_noticed", set())
    return tmp_path / "cache"


class Made:
    """Counts how often it is made."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"a": np.arange(5), "b": np.array([0.1, -np.inf])}


def kept(made, name="x-1"):
    found = cache.kept(name, made)
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [0, 1, 2, 3, 4] and found["b"].tolist() == [0.1, -np.inf]
    return made.times


def test_made_once_and_for_this_user_alone(home):
    made = Made()
    assert [kept(made), kept(made), kept(made, "x-2"), kept(made)] == [1, 1, 2, 2]
    folder = home / "lm"
    assert sorted(path.name for path in folder.iterdir()) == ["x-1.npz", "x-2.npz"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "x-1.npz").stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"no arrays", None])
def test_damaged_files_are_made_again(home, damage):
    made = Made()
    kept(made)
    path = home / "lm" / "x-1.npz"
    whole = path.read_bytes()
    at = whole.index(np.arange(5).tobytes())
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :] if damage is None else damage)
    assert [kept(made), kept(made)] == [2, 2]


def test_objects_are_never_unpickled(home):
    made = Made()
    kept(made)
    with open(home / "lm" / "x-1.npz", "wb") as file:
        np.savez(file, a=np.array([Made()], object), b=np.zeros(1))
    assert kept(made) == 2


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_can_write_is_not_used(home, mode, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_core"), "propagate", True)
    made = Made()
    kept(made)
    (home / "lm").chmod(mode)
    with caplog.at_level(logging.INFO, "lm_core"):
        assert [kept(made), kept(made)] == [2, 3]
    (said,) = caplog.messages
    assert said.startswith(f"{home / 'lm'}: is not used to keep") and "chmod 700 it" in said
    (home / "lm").chmod(0o700)
    assert kept(made) == 3


def test_of_another_user(home, monkeypatch):
    made = Made()
    kept(made)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert kept(made) == 2


def test_a_file_that_others_can_write_or_a_link_is_not_read(home):
    made = Made()
    kept(made)
    path = home / "lm" / "x-1.npz"
    path.chmod(0o606)
    assert kept(made) == 2
    path.rename(home / "elsewhere.npz")
    path.symlink_to(home / "elsewhere.npz")
    assert kept(made) == 3
    assert not path.is_symlink() and kept(made) == 3


def test_a_linked_folder_is_not_used(home, tmp_path):
    home.mkdir()
    (tmp_path / "other").mkdir()
    (home / "lm").symlink_to(tmp_path / "other")
    made = Made()
    assert [kept(made), kept(made)] == [1, 2]
    assert not list((tmp_path / "other").iterdir())


def test_where_nothing_can_be_written_it_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = Made()
    assert [kept(made), kept(made)] == [1, 2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert [kept(made), kept(made)] == [3, 4]
    assert not list((tmp_path / "full" / "lm").iterdir())


def test_without_xdg_cache_home_it_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for value in ("", "relative/path"):  # which the specification has ignored
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        kept(Made())
    assert [path.name for path in (tmp_path / ".cache" / "lm").iterdir()] == ["x-1.npz"]
