"""The data sets that `python -m lm_llama.preprocess` turns into records."""

from __future__ import annotations

from lm_core.data.alpaca import ALPACA
from lm_core.data.paragraphs import PARAGRAPHS
from lm_core.data.preprocess import Converter, Preprocessor
from lm_core.data.text import TEXT
from lm_core.data.vicuna import QA

PREPROCESSORS: dict[str, Preprocessor | Converter] = {
    "wiki": PARAGRAPHS,
    "text": TEXT,
    "alpaca": ALPACA,
    "qa": QA,
}
