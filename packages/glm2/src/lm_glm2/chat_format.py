"""The conversations that ChatGLM2 was trained on: numbered rounds, one text.

    [gMASK] sop [Round 1]

    问：QUESTION

    答：ANSWER

    [Round 2]

    问：QUESTION

    答：

As `build_prompt` and `chat` of the published program do it: the whole prompt is encoded as one
text, rounds count from 1 whatever was said before them, and nothing in it is special but the first
two tokens. The labels are ordinary text, which users may write, too.

The program has no system message. Here its text stands before the first round, with an empty line
between, so it is read, but the model was not trained on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_core.errors import TokenizerError
from lm_core.tokenizer.messages import Conversation

GAP, QUESTION, ANSWER = "\n\n", "问：", "答："


def prompt(query: str, history: Sequence[Sequence[str]] | None = None) -> str:
    """The text that asks a question.

    Args:
        query: the question.
        history: questions and their answers, the oldest first.

    Raises:
        TokenizerError: the question is no text, or the history no list of pairs of texts.
    """
    problems = _problems(query, history)
    if problems:
        raise TokenizerError(*problems[:8])
    return GAP.join([*_rounds(history or [], query), ANSWER])


def encode(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
) -> list[int]:
    """Ids of a conversation.

    Args:
        tokenizer: has `encode` and `eos_token_id`.
        messages: see `lm_core.tokenizer.messages`.
        add_generation_prompt: an answer is to follow, so the last message must be a question.
            Without it a last answer is encoded as in training: a text of its own that ends in
            `</s>`; and a last question has no label of an answer behind it.

    Raises:
        TokenizerError: messages that are none, or do not take turns.
    """
    conversation = Conversation.of_messages(messages)
    conversation.check(add_generation_prompt)
    before = [conversation.system] if conversation.system else []
    if conversation.question is not None:
        after = [ANSWER] if add_generation_prompt else []
        asked = _rounds(conversation.rounds, conversation.question)
        return tokenizer.encode(GAP.join([*before, *asked, *after]), split_special_tokens=True)
    *rounds, (question, answer) = conversation.rounds
    text = GAP.join([*before, *_rounds(rounds, question), ANSWER])
    ids = tokenizer.encode(text, split_special_tokens=True)
    said = tokenizer.encode(answer, add_special_tokens=False, split_special_tokens=True)
    return [*ids, *said, tokenizer.eos_token_id]


def _rounds(history: Sequence[Sequence[str]], query: str) -> Iterator[str]:
    """What gaps stand between, up to the last question."""
    for number, (question, answer) in enumerate(history, 1):
        yield f"[Round {number}]{GAP}{QUESTION}{question}"
        yield f"{ANSWER}{answer}"
    yield f"[Round {len(history) + 1}]{GAP}{QUESTION}{query}"


def _problems(query: Any, history: Any) -> list[str]:
    found = []
    if not isinstance(query, str):
        found.append(f"query: is {type(query).__name__}; must be the text of a question; give one")
    if history is None:
        return found
    if isinstance(history, str | Mapping) or not isinstance(history, Sequence):
        kind = type(history).__name__
        hint = "must be a list of (question, answer); put the pairs into a list"
        return [*found, f"history: is {kind}; {hint}"]
    return found + [
        f"history[{number}]: is {pair!r:.60}; must be a pair of texts, (question, answer); correct "
        f"it (messages with roles are for apply_chat_template)"
        for number, pair in enumerate(history)
        if not _is_pair(pair)
    ]


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(text, str) for text in value)
