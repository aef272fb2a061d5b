"""A question and its answer as one record, of which the answer is trained.

    [gMASK] sop [Round 1] ... content ... | answer </s> | padding

Everything before the answer is what `Tokenizer.build_prompt` makes of the content. Labels are
aligned with the ids (the batch shifts them): the first token of the answer and the token that ends
it are trained. (MindFormers at the commit of the model card leaves the first one out.)

A prompt that is too long loses the end of its content, never the words around it; of an answer that
is too long the beginning is kept, and the end of text stands behind that, as in the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_core.data.packing import IGNORED, Document
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer


class Pair(NamedTuple):
    """A question, its answer, and where they stand: "FILE line 17"."""

    content: str
    answer: str
    where: str


class Lengths(NamedTuple):
    """Most tokens of a prompt, with all that belongs to it, and of an answer without its end."""

    source: int
    target: int

    @property
    def row(self) -> int:
        """Ids of a record that holds the longest of both."""
        return self.source + self.target + 1


def check_tokenizer(tokenizer: Tokenizer, lengths: Lengths, where: str = "") -> None:
    """Finds out before the first record what would be wrong with all of them.

    Args:
        tokenizer: encodes them.
        lengths: of the records.
        where: the section of the run that gives the lengths, with a dot.

    Raises:
        TokenizerError: it has no form for questions.
        DataError: there is no room for that form, or no token that ends an answer.
    """
    words = len(_prompt(tokenizer, ""))
    if words >= lengths.source:
        raise DataError(
            f"{where}max_source_length: is {lengths.source}; must be more than the {words} tokens "
            f"that stand around every question; raise it"
        )
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no eos_token to end answers; must have one; name it")


def prompt_ids(tokenizer: Tokenizer, content: str, most: int) -> list[int]:
    """The prompt of a content, in at most so many tokens."""
    whole = _prompt(tokenizer, content)
    if len(whole) <= most:
        return whole
    fits, over = 0, len(content)
    kept = _prompt(tokenizer, "")
    while over - fits > 1:
        middle = (fits + over) // 2
        found = _prompt(tokenizer, content[:middle])
        if len(found) <= most:
            fits, kept = middle, found
        else:
            over = middle
    return kept


def _prompt(tokenizer: Tokenizer, content: str) -> list[int]:
    return tokenizer.encode(tokenizer.build_prompt(content))


def document(tokenizer: Tokenizer, pair: Pair, lengths: Lengths) -> Document:
    """Ids and labels of a pair, without padding."""
    prompt = prompt_ids(tokenizer, pair.content, lengths.source)
    answer = tokenizer.encode(pair.answer, add_special_tokens=False)[: lengths.target]
    trained = [*answer, tokenizer.eos_token_id]
    ids = np.array([*prompt, *trained], np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORED
    return Document(ids, labels)


def filled(one: Document, length: int, pad: int, train_padding: bool = False) -> Row:
    """Columns `input_ids` and `labels` [length], filled up on the right."""
    size = len(one.ids)
    assert size <= length, f"a document of {size} ids for records of {length}"
    ids = np.full(length, pad, np.int32)
    labels = np.full(length, pad if train_padding else IGNORED, np.int32)
    ids[:size], labels[:size] = one.ids, one.labels
    return {"input_ids": ids, "labels": labels}
