"""The data sets that `python -m lm_gpt2.preprocess` turns into records."""

from __future__ import annotations

from lm_core.data.preprocess import Preprocessor
from lm_core.data.text import TEXT, WIKITEXT2
from lm_core.data.txtcls import TXTCLS

PREPROCESSORS: dict[str, Preprocessor] = {"wikitext2": WIKITEXT2, "text": TEXT, "txtcls": TXTCLS}
