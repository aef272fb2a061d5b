"""The conversations that Llama-2-chat and Code Llama-Instruct (7B, 13B, 34B) were trained on.

    <s>[INST] <<SYS>>
    SYSTEM
    <</SYS>>

    QUESTION [/INST] ANSWER </s><s>[INST] QUESTION [/INST]

As `chat_completion` in Meta's llama/generation.py does it: each round is encoded by itself, and
`<s>` and `</s>` are ids that no text can stand for. The tags are ordinary text, so users must not
write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_core.errors import TokenizerError
from lm_core.tokenizer.messages import Conversation

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def encode(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
) -> list[int]:
    """Ids of a conversation.

    Args:
        tokenizer: has `encode`, `bos_token_id` and `eos_token_id`.
        messages: see `lm_core.tokenizer.messages`.
        add_generation_prompt: an answer is to follow, so the last message must be a question.

    Raises:
        TokenizerError: messages that are none or do not take turns, or tags within them.
    """
    conversation = Conversation.of_messages(messages)
    conversation.check(add_generation_prompt)
    _check_tags(conversation)
    before = f"<<SYS>>\n{conversation.system}\n<</SYS>>\n\n" if conversation.system else ""
    ids: list[int] = []
    for question, answer in conversation.rounds:
        text = f"[INST] {(before + question).strip()} [/INST] {answer.strip()} "
        ids += [*_ids(tokenizer, text), tokenizer.eos_token_id]
        before = ""
    if conversation.question is not None:
        ids += _ids(tokenizer, f"[INST] {(before + conversation.question).strip()} [/INST]")
    return ids


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [tokenizer.bos_token_id, *ids]


def _check_tags(conversation: Conversation) -> None:
    asked = [question for question, _ in conversation.rounds]
    texts = [conversation.system, *asked, conversation.question or ""]
    found = [tag for tag in TAGS if any(tag in text for text in texts)]
    if found:
        raise TokenizerError(
            f"message: holds {', '.join(found)}; must hold none of the tags {', '.join(TAGS)}, "
            f"which only the chat format writes; leave them out"
        )
