"""How long rows of ids become: shortening, filling up, and arrays of rows that are equally long."""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_core.errors import TokenizerError


def cut_length(
    max_length: int | None, padding: bool | str, truncation: bool | str | None
) -> int | None:
    """The length to which rows are shortened, None if they are not.

    Raises:
        TokenizerError: an impossible request.
    """
    unknown = {True, False, None, "longest_first", "only_first", "do_not_truncate"}
    if truncation not in unknown:
        raise TokenizerError(
            f"truncation: {truncation!r} is none of True, False, longest_first; use one of them"
        )
    if max_length is not None and max_length < 0:
        raise TokenizerError(f"max_length: {max_length} is negative; use at least 0")
    if truncation is None:
        truncation = padding in (False, "do_not_pad")
    elif truncation and truncation != "do_not_truncate" and max_length is None:
        raise TokenizerError("truncation: needs a max_length; give one")
    return max_length if truncation and truncation != "do_not_truncate" else None


def pad_length(rows: list[list[int]], max_length: int | None, padding: bool | str) -> int | None:
    """The length to which rows are filled up, None if they are not.

    Raises:
        TokenizerError: an impossible request.
    """
    if padding in (False, "do_not_pad"):
        return None
    if padding in (True, "longest"):
        return max(map(len, rows), default=0)
    if padding != "max_length":
        raise TokenizerError(
            f"padding: {padding!r} is none of True, False, longest, max_length; use one of them"
        )
    if max_length is None:
        raise TokenizerError('padding: "max_length" needs a max_length; give one')
    return max_length


def tensor(rows: list[list[int]], kind: str) -> Any:
    """int32 [B, L] of equally long rows: "np" an array, "ms" a MindSpore tensor.

    Raises:
        TokenizerError: rows of several lengths, or another kind.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        shown = ", ".join(map(str, sorted(lengths)))
        raise TokenizerError(
            f"return_tensors: rows have lengths {shown}; use padding=True, or truncation=True and "
            f"a max_length"
        )
    array = np.array(rows, np.int32).reshape(len(rows), -1)
    if kind == "np":
        return array
    if kind != "ms":
        raise TokenizerError(
            f'return_tensors: {kind!r} is none of "np", "ms"; use one of them, or None for lists'
        )
    from mindspore import Tensor

    return Tensor(array)
