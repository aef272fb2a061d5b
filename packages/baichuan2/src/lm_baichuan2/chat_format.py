"""The conversations that Baichuan 2 was trained on: a token before what each says, none behind.

    SYSTEM <reserved_106> QUESTION <reserved_107> ANSWER <reserved_106> QUESTION <reserved_107>

As `build_chat_input` of the published program does it: a system message has no token of its own,
texts are encoded one by one and as they are, and between rounds nothing ends an answer. `</s>`
stands behind the last answer of training data; before that, it is what a model learns to say where
the next question begins.

Other than there, the tokens of the roles in a text are ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lm_core.tokenizer.messages import Conversation

if TYPE_CHECKING:
    from lm_baichuan2.tokenizer import Baichuan2Tokenizer


def encode(
    tokenizer: Baichuan2Tokenizer,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a conversation.

    Args:
        tokenizer: Baichuan 2's.
        messages: see `lm_core.tokenizer.messages`.
        add_generation_prompt: an answer is to follow, so the last message must be a question.
            Without it a last answer ends in `</s>`, as in training; and a last question has no
            token of the assistant behind it.

    Raises:
        TokenizerError: messages that are none, or do not take turns; a vocabulary without roles.
    """
    conversation = Conversation.of_messages(messages)
    conversation.check(add_generation_prompt)
    said, user, assistant = (
        tokenizer.encode_said,
        tokenizer.user_token_id,
        tokenizer.assistant_token_id,
    )
    ids = said(conversation.system)
    for question, answer in conversation.rounds:
        ids += [user, *said(question), assistant, *said(answer)]
    if conversation.question is None:
        end = tokenizer.eos_token_id
        return ids if end is None else [*ids, end]
    ids += [user, *said(conversation.question)]
    return [*ids, assistant] if add_generation_prompt else ids
