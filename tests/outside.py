"""Where tests find files that the project must not ship: vocabularies and data sets of others."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("LM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
"""The folder; tests that need a file of it are skipped where that is not."""
