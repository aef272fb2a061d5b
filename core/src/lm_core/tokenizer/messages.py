"""A conversation as a list of messages, the form in which programs and files exchange it.

    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}, ...]

An optional system message, then a question of the user and an answer of the assistant in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from lm_core.errors import TokenizerError

ROLES = ("system", "user", "assistant")
Message = dict[str, str]


@dataclass(slots=True)
class Conversation:
    """What was said.

    Attributes:
        system: how the assistant is to behave; "" for nothing.
        rounds: questions and their answers, the oldest first.
        question: one that has no answer yet.
    """

    system: str = ""
    rounds: list[tuple[str, str]] = field(default_factory=list)
    question: str | None = None

    @classmethod
    def of_messages(cls, messages: Any) -> Self:
        """Reads a list of messages.

        Raises:
            TokenizerError: it is no such list, or roles do not take turns.
        """
        found = _checked(messages)
        system = found.pop(0)["content"] if found and found[0]["role"] == "system" else ""
        for place, message in enumerate(found):
            wanted = ROLES[1 + place % 2]
            if message["role"] != wanted:
                number = place + len(messages) - len(found)
                raise TokenizerError(
                    f"messages[{number}].role: is {message['role']}; must be {wanted}: after a "
                    f"system message, if any, user and assistant take turns; reorder them"
                )
        texts = [message["content"] for message in found]
        question = texts[-1] if len(texts) % 2 else None
        return cls(system, list(zip(texts[::2], texts[1::2], strict=False)), question)

    def check(self, answer_follows: bool) -> None:
        """Makes sure that something was said, and where an answer follows, asked.

        Raises:
            TokenizerError: it was not.
        """
        if not self.rounds and self.question is None:
            raise TokenizerError("messages: hold no question; must hold one; add a user's message")
        if answer_follows and self.question is None:
            raise TokenizerError(
                "messages: end with an answer; must end with a question; add a user's message or "
                "pass add_generation_prompt=False"
            )

    def messages(self, skip: int = 0) -> list[Message]:
        """What `of_messages` reads, without the `skip` oldest rounds."""
        found = [_message("system", self.system)] if self.system else []
        for question, answer in self.rounds[skip:]:
            found += [_message("user", question), _message("assistant", answer)]
        return found if self.question is None else [*found, _message("user", self.question)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _checked(messages: Any) -> list[Message]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TokenizerError(
            f"messages: is {type(messages).__name__}; must be a list of "
            f'{{"role": ROLE, "content": TEXT}}; put it into a list'
        )
    problems = [text for n, item in enumerate(messages) if (text := _problem(n, item))]
    if problems:
        raise TokenizerError(*problems[:8])
    return [_message(item["role"], item["content"]) for item in messages]


def _problem(number: int, item: Any) -> str:
    where = f"messages[{number}]"
    if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
        return f'{where}: is {item!r:.60}; must be {{"role": ROLE, "content": TEXT}}; correct it'
    if item["role"] not in ROLES:
        return (
            f"{where}.role: is {item['role']!r:.60}; must be one of {', '.join(ROLES)}; rename it"
        )
    if not isinstance(item["content"], str):
        return f"{where}.content: is {type(item['content']).__name__}; must be text; correct it"
    return ""
