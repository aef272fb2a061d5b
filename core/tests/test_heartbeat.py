"""A touched file is a sign of life; without the variable nothing happens."""

from __future__ import annotations

import os

from lm_core.heartbeat import beat


def test_touches_the_file_again_and_again(tmp_path, monkeypatch):
    path = tmp_path / "heartbeat"
    monkeypatch.setenv("LM_HEARTBEAT", str(path))
    beat()
    os.utime(path, (1, 1))
    beat()
    assert path.stat().st_mtime > 1


def test_never_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_HEARTBEAT", str(tmp_path / "no" / "folder"))
    beat()
    monkeypatch.delenv("LM_HEARTBEAT")
    monkeypatch.chdir(tmp_path)
    beat()
    assert list(tmp_path.iterdir()) == []
