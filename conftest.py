"""For all tests of the workspace."""

from __future__ import annotations

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Files in the order that we give them: pytest-xdist begins with those of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, so that all workers end at about the same time."""
    marked = {
        name: {item.path for item in items if item.get_closest_marker(name)}
        for name in ("distributed", "slow")
    }
    items.sort(key=lambda item: [item.path not in marked[name] for name in marked])


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end.

    MindSpore looks for garbage before it compiles a graph, which takes as long as a small graph
    when all modules and tests are looked through each time.
    """
    _settle()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Nor is what a file leaves: modules that it was the first to need, and graphs."""
    if nextitem is None or nextitem.path != item.path:
        _settle()


def _settle() -> None:
    gc.collect()
    gc.freeze()
