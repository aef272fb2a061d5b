"""What goes into and comes out of a tokenizer: texts, rows of ids, arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def without_surrogates(text: str) -> str:
    """Joins surrogate pairs to the character that they mean and replaces lone ones by U+FFFD.

    Python strings may hold halves of UTF-16 pairs (from JSON escapes or file names); they have no
    UTF-8 form.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def plain(ids: Any) -> Any:
    """Arrays and tensors, also nested in lists, as Python ints and lists."""
    if hasattr(ids, "asnumpy"):
        ids = ids.asnumpy()
    if isinstance(ids, np.ndarray | np.generic):
        return ids.tolist()
    return [plain(item) for item in ids] if isinstance(ids, list | tuple) else ids
