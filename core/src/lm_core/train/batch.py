"""Records to what the network is fed: inputs, and for each the token that follows, or the class.

A record of a language model of L ids gives L - 1 inputs and L - 1 targets. Which targets count:

- a column `labels`, aligned with input_ids (not shifted): those that are not -100;
- a column `attention_mask`: those whose own mask is 1. With both columns, both must agree;
- with neither, all but padding: the run of pad ids at the end of a record. An end-of-text token
  inside a record is a target like any other, and where the pad *is* the end-of-text token (GPT-2)
  the first of the run is one, too: the text ends there. (MindFormers takes every end-of-text token
  for padding, so a model trained that way never learns to stop.)

Where records hold several documents (`segment_ids`, see `lm_core.data.packing`) the first token of
a document is no target, and the network is given three numbers for each token: its id, its place in
its document, and the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lm_core.data.packing import IGNORED, SEGMENTS

Columns = Mapping[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]
"""Inputs, int32 [B, S] or [B, 3, S] (see `lm_core.nn.network.Network`), and labels, [B, S]."""


def causal_batch(
    columns: Columns,
    pad_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
) -> Batch:
    """Inputs and aligned labels of records [B, L], S = L - 1.

    Args:
        columns: `input_ids`, and perhaps `attention_mask`, `labels` and `segment_ids`.
        pad_token_id: marks padding where none of these does; None: there is no padding.
        eos_token_id: what ends a text.
    """
    ids = columns["input_ids"]
    targets = columns.get("labels", ids)[:, 1:].astype(np.int32)  # a copy
    mask, segments = columns.get("attention_mask"), columns.get(SEGMENTS)
    if mask is not None:
        targets[mask[:, 1:] == 0] = IGNORED
    elif "labels" not in columns and segments is None and pad_token_id is not None:
        ends = np.isin(pad_token_id, eos_token_id) if eos_token_id is not None else False
        targets[_padding(ids, pad_token_id, keep_first=bool(ends))[:, 1:]] = IGNORED
    inputs = np.ascontiguousarray(ids[:, :-1], dtype=np.int32)
    if segments is None:
        return inputs, targets
    before, after = segments[:, :-1], segments[:, 1:]
    targets[(after != before) | (after == 0)] = IGNORED
    return np.stack((inputs, _places(before), before), 1).astype(np.int32), targets


def _places(segments: np.ndarray) -> np.ndarray:
    """The place of each token in its segment, [B, S], counted from 0."""
    at = np.arange(segments.shape[1])
    begins = np.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    return at - np.maximum.accumulate(np.where(begins, at, 0), axis=1)


def class_batch(columns: Columns) -> Batch:
    """Inputs and aligned labels, int32 [B, L], of one class for each row.

    The class stands at the last token of the row; all other positions are ignored.

    Args:
        columns: `input_ids` and `attention_mask` [B, L], padded on the right, `labels` [B, 1].
    """
    ids, mask = columns["input_ids"], columns["attention_mask"]
    targets = np.full(ids.shape, IGNORED, np.int32)
    targets[np.arange(len(ids)), mask.sum(1) - 1] = columns["labels"][:, 0]
    return np.ascontiguousarray(ids, dtype=np.int32), targets


def _padding(ids: np.ndarray, pad: int, keep_first: bool) -> np.ndarray:
    """True on the run of `pad` at the end of each row, except perhaps its first."""
    run = np.logical_and.accumulate((ids == pad)[:, ::-1], axis=1)[:, ::-1]
    if keep_first:
        run = np.concatenate((np.zeros_like(run[:, :1]), run[:, 1:] & run[:, :-1]), axis=1)
    return run


def fill_rows(batch: Batch, rows: int) -> Batch:
    """Adds rows that are not trained, so that every batch has one shape and one compiled graph."""
    missing = rows - len(batch[0])
    if missing <= 0:
        return batch
    inputs, labels = batch
    return (
        np.concatenate((inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype))),
        np.pad(labels, ((0, missing), (0, 0)), constant_values=IGNORED),
    )


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """Cuts a batch into equal micro-batches."""
    size = len(batch[0]) // parts
    assert size * parts == len(batch[0]), "the batch divides into its micro-batches"
    return [
        (batch[0][start : start + size], batch[1][start : start + size])
        for start in range(0, size * parts, size)
    ]
