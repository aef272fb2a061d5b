"""The data sets that `python -m lm_pangualpha.preprocess` turns into records."""

from __future__ import annotations

from lm_core.data.cmrc2018 import CMRC2018
from lm_core.data.preprocess import Converter, Preprocessor
from lm_core.data.pretrain import PRETRAIN
from lm_core.data.text import TEXT
from lm_core.data.tnews import TNEWS

PREPROCESSORS: dict[str, Preprocessor | Converter] = {
    "pretrain": PRETRAIN,
    "cmrc2018": CMRC2018,
    "text": TEXT,
    "tnews": TNEWS,
}
