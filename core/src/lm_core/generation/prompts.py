"""From `input_ids` as users pass them to the real tokens of each prompt, and how far each grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig
from lm_core.log import notice_once

MOST_PROBLEMS = 8
"""Lines of a report about a large batch."""


def read_prompts(
    input_ids: Any, attention_mask: Any, *, vocab_size: int, bos: int | None, pad: int | None
) -> list[np.ndarray]:
    """One int32 array per prompt, without padding.

    What is padding? `attention_mask` decides where it is given. Without it, rows of unequal length
    hold no padding, and in rows of equal length (one prompt, a 2-D array) the pads at the end of a
    row are padding, unless *every* row ends in exactly one: a padded batch hardly ever looks like
    that, but texts that end in the EOS do where EOS and pad are the same token, as GPT-2's are.
    Pass `attention_mask` where that guess is wrong.

    Args:
        input_ids: ids of one prompt or of several: a list, a list of lists or arrays, a 1-D or 2-D
            array, a Tensor.
        attention_mask: like input_ids; tokens with 0 are dropped, wherever they stand.
        vocab_size: V.
        bos: stands in for an empty prompt.
        pad: the id of the padding; None where there is none.

    Raises:
        GenerationError: no prompt, an empty one without a `bos`, something that is not an id.
    """
    rows = as_rows(input_ids, "input_ids")
    if attention_mask is not None:
        rows = _masked(rows, as_rows(attention_mask, "attention_mask"))
    elif pad is not None and len({len(row) for row in rows}) == 1:
        rows = _without_padding(rows, pad)
    problems = [
        text for number, row in enumerate(rows) if (text := _problem(number, row, vocab_size, bos))
    ]
    if problems:
        raise GenerationError(*problems[:MOST_PROBLEMS])
    return [np.array(row if len(row) else [bos], np.int32) for row in rows]


def as_rows(values: Any, name: str) -> list[np.ndarray]:
    """The rows of a nested list, array or Tensor; a flat one is one row."""
    if isinstance(values, str | Mapping):
        hint = 'use tokenizer(text)["input_ids"]'
        raise GenerationError(f"{name}: is {type(values).__name__}; must be token ids; {hint}")
    if isinstance(values, Sequence) and values and np.ndim(values[0]) == 1:
        return [_row(row, f"{name}[{number}]") for number, row in enumerate(values)]
    array = _array(values, name)
    if array.ndim == 2 and array.shape[0]:
        return [_row(row, name) for row in array]
    if array.ndim == 1:
        return [_row(array, name)]
    raise GenerationError(
        f"{name}: has shape {list(array.shape)}; must be [S] or, for several, [B, S]; reshape it"
    )


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values.asnumpy() if hasattr(values, "asnumpy") else values)
    except ValueError:
        raise GenerationError(
            f"{name}: mixes ids and lists; must be a list of ids or of such lists; regroup it"
        ) from None


def _row(values: Any, name: str) -> np.ndarray:
    array = _array(values, name)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise GenerationError(
            f"{name}: holds {array.dtype} of shape {list(array.shape)}; must be a row of whole "
            f"numbers; encode text with the tokenizer"
        )
    return array.astype(np.int64)


def _masked(rows: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
    sizes, wanted = [len(mask) for mask in masks], [len(row) for row in rows]
    if sizes != wanted:
        raise GenerationError(
            f"attention_mask: has rows of {_short(sizes)} but input_ids of {_short(wanted)}; "
            f"they must be alike; pass both from one call of the tokenizer"
        )
    return [row[mask != 0] for row, mask in zip(rows, masks, strict=True)]


def _short(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:MOST_PROBLEMS])) + (
        ", ..." if len(sizes) > MOST_PROBLEMS else ""
    )


def _without_padding(rows: list[np.ndarray], pad: int) -> list[np.ndarray]:
    runs = [_run(row, pad) for row in rows]
    if set(runs) == {1}:
        return rows
    return [row[: len(row) - run] for row, run in zip(rows, runs, strict=True)]


def _run(row: np.ndarray, pad: int) -> int:
    real = np.flatnonzero(row != pad)
    return len(row) - 1 - int(real[-1]) if len(real) else len(row)


def _problem(number: int, row: np.ndarray, vocab_size: int, bos: int | None) -> str:
    if not len(row):
        if bos is not None:
            return ""
        return (
            f"input_ids: prompt {number} is empty; must hold a token, as the model has no "
            f"bos_token_id; write a prompt"
        )
    wrong = np.flatnonzero((row < 0) | (row >= vocab_size))
    if len(wrong):
        return (
            f"input_ids: prompt {number} has id {row[wrong[0]]} at position {wrong[0]}; must be "
            f"from 0 to {vocab_size - 1}; use the tokenizer that belongs to the model"
        )
    return ""


def fit(
    prompts: list[np.ndarray], settings: GenerationConfig, context: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The prompts, cut at the left where that is asked for, and the length at which each must stop.

    Args:
        prompts: int32 arrays.
        settings: with at least one length limit.
        context: tokens of the longest sequence of the model.

    Returns:
        prompts and int [B] limits, limits[b] > len(prompts[b]).

    Raises:
        GenerationError: a prompt that leaves no room for a token.
    """
    longest = min(settings.max_length or context, context)
    if settings.truncation == "left":
        room = min(settings.max_new_tokens or 1, longest - 1)
        prompts = [prompt[-(longest - room) :] for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    problems = [
        _too_long(row, lengths[row], longest, context) for row in np.flatnonzero(lengths >= longest)
    ]
    if problems:
        raise GenerationError(*problems[:MOST_PROBLEMS])
    wanted = np.full(len(prompts), settings.max_length or (settings.max_new_tokens or 0) + context)
    if settings.max_new_tokens:
        wanted = np.minimum(wanted, lengths + settings.max_new_tokens)
    if wanted.max() > context:
        text = f"{wanted.max()} tokens were asked for; stopping at the model's context of {context}"
        notice_once(f"generate past {context}", f"generate: {text}")
    return prompts, np.minimum(wanted, context)


def _too_long(number: int, length: int, longest: int, context: int) -> str:
    if longest == context:
        return (
            f"input_ids: prompt {number} has {length} tokens; must be fewer than the model's "
            f"context of {context}; shorten it or pass truncation='left'"
        )
    return (
        f"input_ids: prompt {number} has {length} tokens; must be fewer than max_length {longest}, "
        f"which counts the prompt; raise max_length, or pass max_new_tokens or truncation='left'"
    )
