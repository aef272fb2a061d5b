"""The template of Vicuna 1.1 (FastChat), in which Llama and Code Llama are fine-tuned.

    SYSTEM USER: question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>

A round is encoded by itself, and in it the answer apart from the question. For a tokenizer that
puts a space before every text the pieces have the ids of the whole round, as `ASSISTANT:` and the
first word of an answer never share a token. Nothing in a text is a special token: a user may write
`</s>` or `ASSISTANT:`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_core.data.dialogues import Dialogue
from lm_core.data.instruct import Piece, Round, preprocessor
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.tokenizer.base import Tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


def vicuna(tokenizer: Tokenizer, dialogue: Dialogue) -> list[Round]:
    """Rounds of a dialogue; the first begins with the beginning-of-text token and the system.

    Raises:
        DataError: the tokenizer has no token that ends an answer.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no eos_token to end an answer; name one")
    space = "" if _implies_space(tokenizer) else " "
    system = SYSTEM if dialogue.system is None else dialogue.system
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text = f"{system} " if system else ""
    rounds = []
    for question, answer in dialogue.rounds:
        given = [*begin, *_ids(tokenizer, f"{text}USER: {question} ASSISTANT:")]
        said = _ids(tokenizer, f"{space}{answer}" if answer else "")
        rounds.append(Round(Piece.given(given), Piece.trained([*said, tokenizer.eos_token_id])))
        begin, text = [], ""
    return rounds


def _implies_space(tokenizer: Tokenizer) -> bool:
    """Whether a text is encoded as if a space stood before it (sentencepiece's dummy prefix)."""
    return _ids(tokenizer, "a b") == _ids(tokenizer, "a") + _ids(tokenizer, "b")


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


QA = preprocessor(vicuna, "Vicuna")
