"""The data sets that `python -m lm_llama.preprocess` turns into records."""

from __future__ import annotations

from lm_core.data.preprocess import Preprocessor
from lm_core.data.text import TEXT

PREPROCESSORS: dict[str, Preprocessor] = {"text": TEXT}
