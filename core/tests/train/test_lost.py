"""Checkpoints that cannot be lost: savers that are killed, disks that are full or read-only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_core.checkpoint import saved

SAVER = Path(__file__).with_name("saver.py")
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
SMALL_DISK = 'mount -t tmpfs -o size=1m tmpfs "$1"'


def run(*words: str, before: tuple[str, ...] = ()) -> tuple[dict, list[str]]:
    """What the saver prints, and the lines of its log."""
    command = [*before, sys.executable, str(SAVER), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


@pytest.mark.parametrize("size", [1_000, 300_000, 6_000_000])
@pytest.mark.parametrize("kind", ["new", "background", "overwritten", "one place"])
def test_killed_at_random_moments(tmp_path, kind, size):
    """60 times kill -9 or more: always a good checkpoint, none older than what was called saved.

    "one place" is a file system that cannot exchange two names.
    """
    count = 5
    seen, _ = run("kill", str(tmp_path), kind, str(size), str(count), f"{size}")
    assert seen["kills"] >= count and seen["saved"] >= count
    # Some must have struck a saver at work, or nothing is shown.
    assert seen["halfway"] >= 2, seen
    assert len(saved.checkpoints(tmp_path)) <= 4


def can_mount(folder: Path) -> bool:
    """Whether this user may have mounts that only a process of his own sees."""
    try:
        words = [*OWN_MOUNTS, SMALL_DISK, "sh", str(folder)]
        return subprocess.run(words, capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        return False


def test_a_disk_that_is_full_or_read_only(tmp_path):
    """1 MB: two checkpoints of 300 KB fit. The good one stays, training goes on, the end fails."""
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a small disk (unshare --map-root-user --mount)")
    shell = (*OWN_MOUNTS, f'{SMALL_DISK}; shift; exec "$@"', "sh", str(tmp_path))
    seen, log = run("fill", str(tmp_path), before=shell)
    two = {"names": ["CKP-1", "CKP-2"], "newest": ["CKP-2", 2]}
    assert seen["full"] == seen["read-only"] == two
    assert "Read-only file system" in seen["end"] and "CKP-4" in seen["end"]
    assert seen["room"] == {"names": ["CKP-2", "CKP-4"], "newest": ["CKP-4", 4]}
    place = f"CHECKPOINT NOT SAVED at step 3: {tmp_path}/run/CKP-3"
    full, early, read_only = [line.partition(place)[2] for line in log]
    assert "safetensors: cannot be written (No space left on device); what was there before" in full
    assert "KB are free here; 300.0 KB are needed; free some space" in early
    assert read_only == (
        ": cannot be written (Read-only file system); what was there before is unchanged; choose a "
        "directory that can be written; training goes on"
    )


def test_bytes_that_the_disk_refuses(tmp_path):
    """In the background, for any user: a limit on the length of files."""
    seen, (line,) = run("limit", str(tmp_path))
    assert seen == {"names": ["CKP-1"], "newest": ["CKP-1", 1]}
    assert "CHECKPOINT NOT SAVED at step 2: " in line and "File too large" in line
