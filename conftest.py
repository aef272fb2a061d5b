"""For all tests of the workspace."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end.

    MindSpore looks for garbage before it compiles a graph, which takes as long as a small graph
    when all modules and tests are looked through each time.
    """
    gc.collect()
    gc.freeze()
