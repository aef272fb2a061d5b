"""Which ids are trained, against a count of bytes that knows nothing of pieces."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from outside import DATA

from lm_core.data.dialogues import Dialogue, parse_dialogue
from lm_core.data.instruct import fit
from lm_core.data.preprocess import Counts
from lm_core.data.vicuna import SYSTEM, vicuna
from lm_core.errors import DataError
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe
from lm_core.tokenizer.byte_level import symbol_bytes

CONVERSATIONS = DATA / "alpaca"
BITS = [
    "USER:", "ASSISTANT:", " ASSISTANT: ", "ASSISTANT:</s>", "</s>", "<s>", "<unk>", "<0x0A>",
    " ", "   ", "\n", "\n\n", "\t", "\r\n", "word", " lobster", "a", ".", "-100", "\u4f60\u597d",
    "\u00e9", "e\u0301", "\U0001f600", "\u200b", "\u2581", "{}", "\\", "",
]  # fmt: skip


def make(seed):
    """A dialogue of nasty texts."""
    rng = random.Random(seed)

    def text():
        return "".join(rng.choices(BITS, k=rng.randrange(7)))

    rounds = [(text(), text()) for _ in range(rng.randrange(1, 5))]
    return Dialogue(rounds, rng.choice([None, "", text(), "You are a lobster."]))


def texts(dialogue, space):
    """Bytes of each question and each answer with what stands around them."""
    system = SYSTEM if dialogue.system is None else dialogue.system
    for number, (question, answer) in enumerate(dialogue.rounds):
        before = f"{system} " if system and not number else ""
        given = f"{space}{before}USER: {question} ASSISTANT:"
        yield given.encode(), f" {answer}".encode() if answer else b""


def spell(tokenizer, index):
    """The bytes of a token that is not special."""
    assert index not in tokenizer.all_special_ids
    token = tokenizer.convert_ids_to_tokens(index)
    if isinstance(tokenizer, ByteLevelBpe):
        return bytes(symbol_bytes()[symbol] for symbol in token)
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:-1], 16)])
    return token.replace("\u2581", " ").encode()


def spelt(tokenizer, ids):
    """Text with special tokens as they are called."""
    return b"".join(
        tokenizer.convert_ids_to_tokens(index).encode()
        if index in tokenizer.all_special_ids
        else spell(tokenizer, index)
        for index in ids
    ).decode()


def expected_labels(ids, dialogue, tokenizer, space):
    """Reads ids one by one and says for each whether it spells an answer."""
    assert ids[0] == tokenizer.bos_token_id
    labels, at = [-100], 1
    for given, said in texts(dialogue, space):
        for part, trained in ((given, False), (said, True)):
            found = b""
            wanted = part.replace("\u2581".encode(), b" ") if space else part
            while len(found) < len(wanted):
                found += spell(tokenizer, ids[at])
                labels.append(ids[at] if trained else -100)
                at += 1
            assert found == wanted, "a token reaches over the border of an answer"
        assert ids[at] == tokenizer.eos_token_id
        labels.append(ids[at])
        at += 1
    assert at == len(ids)
    return labels


def encoded(tokenizer, dialogue):
    document = fit(vicuna(tokenizer, dialogue), 1 << 20, Counts())
    return document.ids.tolist(), document.labels.tolist()


def byte_level():
    special = {"<s>": 500, "</s>": 501}
    vocabulary = train_bpe(["USER: who? ASSISTANT: a lobster, and a language model.\n" * 5], 300)
    return ByteLevelBpe(*vocabulary, special=special, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_exactly_the_answers_are_trained(pieces, start):
    for seed in range(start, start + 100):
        dialogue = make(seed)
        ids, labels = encoded(pieces, dialogue)
        assert labels == expected_labels(ids, dialogue, pieces, " "), dialogue


def test_so_with_a_tokenizer_that_implies_no_space():
    tokenizer = byte_level()
    for seed in range(300):
        dialogue = make(seed)
        ids, labels = encoded(tokenizer, dialogue)
        assert labels == expected_labels(ids, dialogue, tokenizer, ""), dialogue


@pytest.mark.parity
def test_so_with_the_published_vocabulary(llama_pieces):
    for seed in range(300):
        dialogue = make(seed)
        ids, labels = encoded(llama_pieces, dialogue)
        assert labels == expected_labels(ids, dialogue, llama_pieces, " "), dialogue


def test_special_tokens_of_a_user_are_text(pieces):
    ids, labels = encoded(pieces, Dialogue([("</s><s>", "</s>")]))
    assert (ids.count(1), ids.count(2)) == (1, 1)
    assert labels[-1] == 2
    said = [index for index in labels[:-1] if index >= 0]
    assert spelt(pieces, said) == " </s>"


def original(tokenizer, dialogue):
    """Ids and labels as FastChat's loop computes them, on a text that holds no separator."""
    rounds = [f"USER: {question} ASSISTANT: {answer}" for question, answer in dialogue.rounds]
    rounds[0] = f"{SYSTEM} {rounds[0]}"
    ids, labels = [tokenizer.bos_token_id], [-100]
    for text in rounds:
        own = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        before = text.partition(" ASSISTANT: ")[0] + " ASSISTANT: "
        # The last piece of the part before the answer is the space that belongs to its first word.
        given = len(tokenizer.encode(before, add_special_tokens=False)) - 1
        ids += own
        labels += [-100] * given + own[given:]
    return ids, labels


def ordinary(dialogue):
    """Whether the original finds its way: no separators, and answers that begin with a word."""
    said = [text for one in dialogue.rounds for text in one]
    return not any("ASSISTANT:" in text or "</s>" in text for text in said) and all(
        answer and not answer[0].isspace() for _, answer in dialogue.rounds
    )


@pytest.mark.parity
def test_ids_are_those_of_the_original_for_published_dialogues(llama_pieces):
    path = CONVERSATIONS / "fastchat_dummy_conversation.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    compared = 0
    for record in json.loads(path.read_text(encoding="utf-8")):
        dialogue = parse_dialogue(record, Counts())
        if ordinary(dialogue):
            assert encoded(llama_pieces, dialogue) == original(llama_pieces, dialogue)
            compared += 1
    assert compared > 400


def test_system_of_the_record_takes_the_place_of_the_own(pieces):
    texts = {
        system: spelt(pieces, encoded(pieces, Dialogue([("q", "a")], system))[0])
        for system in (None, "", "Be brief.")
    }
    assert texts[None] == f"<s> {SYSTEM} USER: q ASSISTANT: a</s>"
    assert texts[""] == "<s> USER: q ASSISTANT: a</s>"
    assert texts["Be brief."] == "<s> Be brief. USER: q ASSISTANT: a</s>"


def test_a_vocabulary_without_an_end_is_refused(tokenizer):
    plain = ByteLevelBpe(tokenizer.vocab, [])
    with pytest.raises(DataError, match="tokenizer: has no eos_token"):
        vicuna(plain, Dialogue([("q", "a")]))


def test_only_the_answers_of_a_row_are_targets(pieces):
    from lm_core.data.packing import joined
    from lm_core.train.batch import causal_batch

    document = fit(vicuna(pieces, Dialogue([("Who?", "I am"), ("You?", "Yes")])), 200, Counts())
    row = joined([document], 200, 0)
    _, targets = causal_batch({name: row[name][None] for name in ("input_ids", "labels")})
    assert spelt(pieces, targets[targets != -100].tolist()) == " I am</s> Yes</s>"
    assert np.array_equal(row["input_ids"] == 0, np.arange(200) >= len(document.ids))
