"""Chinese text as words, by the dictionary of jieba."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any


def cut(text: str) -> list[str]:
    """The words of a text, blanks and punctuation among them; together they are the text."""
    return list(_tokenizer().cut(text))


@cache
def _tokenizer() -> Any:
    """Its own dictionary, read again in each process in about a second.

    jieba would keep what it read in a file of a known name in the folder for temporary files, from
    where other processes, and other users, are read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its module has escapes that newer Pythons warn of
        import jieba

    found = jieba.Tokenizer()
    found.FREQ, found.total = found.gen_pfdict(found.get_dict_file())
    found.initialized = True
    return found
