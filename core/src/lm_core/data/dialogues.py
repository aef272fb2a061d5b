"""Dialogues from JSON, as ShareGPT, Alpaca converters and chat APIs write them.

A record has `conversations` or `messages`, a list of turns `{"from": ..., "value": ...}` or
`{"role": ..., "content": ...}`, and perhaps a `system` text (or a first turn of that role). Turns
of an assistant before the first question are skipped, a last question without an answer is too;
what remains must be questions and answers in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_core.data.jsonfile import leave_out, read_json_records
from lm_core.data.preprocess import Counts, Item

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Characters of an item: 0.05 s of work, so that many processes end at about the same time.
_ITEM = 1 << 17


class Dialogue(NamedTuple):
    """Questions with their answers, and what was said before the first."""

    rounds: list[tuple[str, str]]
    system: str | None = None
    """None: the record says nothing of it, and a template takes its own."""

    @property
    def characters(self) -> int:
        """Length of all texts."""
        return sum(len(question) + len(answer) for question, answer in self.rounds)


class _Unusable(Exception):
    """Why a record is left out."""


def read_dialogues(files: Sequence[Path], counts: Counts) -> Iterator[Item]:
    """Items of lists of dialogues. Every record is one, or is left out and counted.

    Raises:
        DataError: a file is no JSON.
    """
    waiting: list[Dialogue] = []
    characters = size = 0
    for file in files:
        for record in read_json_records(file, counts):
            counts["dialogues read"] += 1
            size += record.size
            try:
                dialogue = parse_dialogue(record.value, counts)
            except _Unusable as reason:
                leave_out(record.where, f"dialogues left out, {reason}", counts)
                continue
            waiting.append(dialogue)
            characters += dialogue.characters
            if characters >= _ITEM:
                yield Item(waiting, size)
                waiting, characters, size = [], 0, 0
    if waiting:
        yield Item(waiting, size)


def parse_dialogue(record: Any, counts: Counts) -> Dialogue:
    """A record as questions and answers; what is skipped of it is counted.

    Raises:
        _Unusable: it has not the form of one.
    """
    if not isinstance(record, Mapping):
        raise _Unusable("no object")
    turns = [_turn(turn) for turn in _list_of_turns(record)]
    system = record.get("system")
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not isinstance(system, str | None):
        raise _Unusable("a system that is no text")
    first = next((at for at, turn in enumerate(turns) if turn[0] != "assistant"), len(turns))
    last = len(turns) - bool(turns and turns[-1][0] == "user")
    kept = turns[first:last]
    if not kept:
        raise _Unusable("no question with an answer")
    if [role for role, _ in kept] != ["user", "assistant"] * (len(kept) // 2):
        raise _Unusable("questions and answers not in turn")
    if first:
        counts["answers before the first question skipped"] += first
    if last < len(turns):
        counts["questions without an answer skipped"] += 1
    texts = [text for _, text in kept]
    return Dialogue(list(zip(texts[::2], texts[1::2], strict=True)), system)


def _list_of_turns(record: Mapping[str, Any]) -> list[Any]:
    for name in ("conversations", "messages"):
        if isinstance(turns := record.get(name), list):
            return turns
    if "instruction" in record:
        raise _Unusable("instructions (`preprocess alpaca` makes dialogues of them)")
    raise _Unusable("no conversations or messages")


def _turn(turn: Any) -> tuple[str, str]:
    """Role and text."""
    if isinstance(turn, Mapping):
        role = _ROLES.get(str(turn.get("from", turn.get("role"))).lower())
        text = turn.get("value", turn.get("content"))
        if role is None:
            raise _Unusable("unknown role")
        if isinstance(text, str):
            return role, text
    raise _Unusable("a turn without text")
