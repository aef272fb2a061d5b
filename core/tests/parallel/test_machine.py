"""What the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_core.parallel import machine


def test_memory_and_cores():
    assert machine.cores() >= 1
    assert 1 << 28 < machine.free_memory() <= machine.memory()


def test_the_share_of_a_container_counts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    whole = machine.memory()
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.memory() == machine.free_memory() == 1 << 20 < whole


def test_writable(tmp_path: Path):
    assert machine.writable(tmp_path) and list(tmp_path.iterdir()) == []
    assert not machine.writable(tmp_path / "missing")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (2048, "2 KiB"),
        (5 << 20, "5 MiB"),
        (1023 << 20, "1,023 MiB"),
        (4563402752, "4.25 GiB"),
        (1234 << 30, "1,234 GiB"),
    ],
)
def test_sizes_for_people(count, text):
    assert machine.size(count) == text


def test_what_a_run_is_meant_for(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(machine, "has_ascend", lambda there=there: there)
        found = [machine.is_meant_for_ascend(name) for name in ("Ascend", "CPU", "auto")]
        assert found == [True, False, there]
