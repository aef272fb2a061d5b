"""What several test files start from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "tools" / "bench"


@pytest.fixture
def bench(monkeypatch):
    """The modules of tools/bench, which are a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    import driver
    import report

    yield driver, report
    ours = {path.stem for path in BENCH.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
