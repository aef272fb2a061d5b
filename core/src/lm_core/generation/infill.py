"""Fills in what is missing inside a text (Bavarian et al. 2022), with models trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_core.errors import GenerationError
from lm_core.generation.streamer import TextStreamer

MARK = "<FILL_ME>"
"""Stands in a text where something is missing."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What stands before and after the missing text."""

    prefix: str
    suffix: str

    def filled(self, tokenizer: Any, answer: Any) -> str:
        """The whole text with the answer's ids in the gap."""
        return self.prefix + tokenizer.decode_infill(answer) + self.suffix


def read_gaps(texts: Sequence[str]) -> list[Gap]:
    """Texts cut at their mark.

    Raises:
        GenerationError: a text has no mark or several; all such texts.
    """
    counts = [text.count(MARK) for text in texts]
    problems = [
        f"predict_data[{number}]: has {count or 'no'} {MARK}; must have one, where text is "
        f"missing; {'remove the others' if count else 'put it there'}"
        for number, count in enumerate(counts)
        if count != 1
    ]
    if problems:
        raise GenerationError(*problems)
    return [Gap(*text.split(MARK)) for text in texts]


class InfillStreamer(TextStreamer):
    """Writes a text while its gap is filled."""

    def __init__(self, tokenizer: Any, gap: Gap) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self.gap = gap

    def put(self, tokens: Any) -> None:
        """Takes the prompt, in whose place the prefix is shown, then the new tokens."""
        if self._at_prompt:
            self.on_text(self.gap.prefix)
        super().put(tokens)

    def on_text(self, text: str, end: bool = False) -> None:
        """Shows a piece of text, and the suffix behind the last."""
        super().on_text(text + self.gap.suffix if end else text, end)
