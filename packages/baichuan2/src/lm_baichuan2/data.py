"""The data sets that `python -m lm_baichuan2.preprocess` turns into records.

No `</s>` stands between the rounds of a dialogue, as none does when the model is asked (see
`chat_format`). So that it learns to end each answer, `</s>` is the label where the next question
begins: the loss compares a label with what the model says after the ids before it.
"""

from __future__ import annotations

from typing import Any

from lm_core.data.dialogues import Dialogue
from lm_core.data.instruct import Piece, Round, preprocessor
from lm_core.data.packing import IGNORED
from lm_core.data.paragraphs import PARAGRAPHS
from lm_core.data.preprocess import Converter, Preprocessor
from lm_core.data.text import TEXT
from lm_core.errors import DataError


def template(tokenizer: Any, dialogue: Dialogue) -> list[Round]:
    """Rounds of a dialogue, for Baichuan 2's tokenizer.

    Raises:
        DataError: the tokenizer has no token that ends an answer.
        TokenizerError: it has no tokens of roles.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError("tokenizer: has no eos_token to end an answer; name one")
    begin, before = Piece.given(tokenizer.encode_said(dialogue.system or "")), IGNORED
    rounds = []
    for question, answer in dialogue.rounds:
        given = [*tokenizer.encode_said(question), tokenizer.assistant_token_id]
        asked = Piece(
            [*begin.ids, tokenizer.user_token_id, *given],
            [*begin.labels, before, *[IGNORED] * len(given)],
        )
        said = Piece.trained(tokenizer.encode_said(answer))
        rounds.append(Round(asked, said, last=Piece.trained([end])))
        begin, before = Piece([], []), end
    return rounds


PREPROCESSORS: dict[str, Preprocessor | Converter] = {
    "belle": preprocessor(template, "Baichuan 2"),
    "wiki": PARAGRAPHS,
    "text": TEXT,
}
