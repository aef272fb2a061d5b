"""What tests compare with: vocabularies and data sets of others, which are not shipped; jieba."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("LM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
"""The folder; tests that need a file of it are skipped where that is not."""

CHINESE = {
    "tnews": ("train.json", "dev.json"),
    "cmrc2018": ("cmrc2018_dev.json", "cmrc2018_trial.json"),
    "adgen": ("train_head5000.json", "dev.json"),
    "belle": ("belle_chat_ramdon_first1000.json", "zh_seed_tasks.json"),
}
"""Data sets of Chinese texts; the last file of each is a small one."""


def chinese_texts(name: str, *files: str) -> list[str]:
    """The different texts of a data set, short ones and names among them; skips without it."""
    found: dict[str, None] = {}
    for file in files or CHINESE[name]:
        path = DATA / name / file
        if not path.exists():
            pytest.skip(f"{path} is not here")
        text = path.read_text(encoding="utf-8")
        lines = text.strip().split("\n") if "}\n{" in text else [text]
        found.update((one, None) for line in lines for one in _strings(json.loads(line)))
    return list(found)


def jieba_tokenizer() -> Any:
    """The original of `lm_core.tokenizer.words`, without its file in the folder for such."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba

    found = jieba.Tokenizer()
    found.FREQ, found.total = found.gen_pfdict(found.get_dict_file())
    found.initialized = True
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
