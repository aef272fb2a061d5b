"""`python -m lm_baichuan2.preprocess belle`: records against the procedure of the card's script.

The script puts the end of an answer as a label where the next question begins, as is done here. It
cuts a dialogue anywhere; here it ends after an answer, with `</s>`, wherever one fits.
"""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
import pytest
from outside import DATA
from sentencepiece import SentencePieceProcessor

from lm_baichuan2 import SPEC
from lm_baichuan2.data import template
from lm_baichuan2.tokenizer import ASSISTANT, USER, Baichuan2Tokenizer
from lm_core.cli import run_verb
from lm_core.data.dialogues import Dialogue
from lm_core.data.instruct import fit
from lm_core.data.pipeline import RecordDataset
from lm_core.data.preprocess import Counts
from lm_core.testing import tiny

BELLE = DATA / "belle" / "belle_chat_ramdon_first1000.json"
PUBLISHED = DATA / "baichuan2_7b" / "tokenizer.model"


def run(*words):
    return run_verb("preprocess", SPEC, ["belle", *map(str, words)])


def read(path):
    records = RecordDataset(path)
    return records.read(range(len(records)))


def script(encode, user, assistant, turns):
    """Ids and labels of the card's script; the first label, which is never used, is ignored."""
    ids, labels = [], []
    for turn in turns:
        text = encode(turn["value"])
        if turn["from"] == "human":
            ids += [user, *text]
            labels += [2, *[-100] * len(text)]
        else:
            ids += [assistant, *text]
            labels += [-100, *text]
    return [*ids, 2], [-100, *labels[1:], 2]


def brute_force(encode, user, assistant, records, length):
    """Rows of all dialogues, by trying every number of rounds from the whole dialogue down."""
    rows = []
    for record in records:
        turns = record["conversations"]
        if any(turn["from"] != ("human", "gpt")[n % 2] for n, turn in enumerate(turns)):
            continue
        turns = turns[: len(turns) // 2 * 2]
        for end in range(len(turns), -1, -2):
            ids, labels = script(encode, user, assistant, turns[: end or 2])
            if len(ids) <= length or not end:
                break
        ids, labels = ids[:length], labels[:length]
        if any(label != -100 for label in labels):
            rest = length - len(ids)
            rows.append((ids + [0] * rest, labels + [-100] * rest))
    return rows


def found(path):
    rows = read(path)
    pairs = zip(rows["input_ids"].tolist(), rows["labels"].tolist(), strict=True)
    return list(pairs)


@pytest.fixture
def model_file(tmp_path, vocabulary):
    (tmp_path / "tokenizer.model").write_bytes(vocabulary)
    return tmp_path / "tokenizer.model"


def generated(seed, count):
    """Dialogues of every length; some end with a question, some are out of turn."""
    rng = random.Random(seed)
    words = tiny.text(50, seed).split()

    def text():
        return " ".join(rng.choices(words, k=rng.randrange(12)))

    records = []
    for _ in range(count):
        kinds = ["human", "gpt"] * rng.randrange(1, 5) + ["human"] * (rng.random() < 0.2)
        if rng.random() < 0.1:
            kinds.insert(1, "human")
        records.append({"conversations": [{"from": kind, "value": text()} for kind in kinds]})
    return records


@pytest.mark.parametrize("length", [24, 60, 400])
def test_records_are_those_of_brute_force(tmp_path, model_file, tokenizer, length, capsys):
    given = generated(length, 120)
    (tmp_path / "a_1.json").write_text(json.dumps(given[:50]))
    (tmp_path / "a_2.json").write_text("".join(f"{json.dumps(one)}\n" for one in given[50:]))
    words = ("--input_glob", tmp_path / "a_*.json", "--model_file", model_file)
    output = tmp_path / "belle.mindrecord"
    assert run(*words, "--output_file", output, "--seq_length", length - 1) == 0
    library = SentencePieceProcessor(model_proto=tokenizer.model)
    roles = tokenizer.user_token_id, tokenizer.assistant_token_id
    expected = brute_force(library.encode, *roles, given, length)
    assert found(output) == expected
    shown = capsys.readouterr().out
    assert f"records: {len(expected)}" in shown and "dialogues read: 120" in shown
    assert ("dialogues cut" in shown) == (length < 400)
    assert "questions and answers not in turn" in shown


def test_several_processes_write_the_same(tmp_path, model_file):
    (tmp_path / "a.json").write_text(json.dumps(generated(5, 2000)))
    words = ("--input_glob", tmp_path / "a.json", "--model_file", model_file, "--seq_length", 64)
    rows = []
    for count in (1, 2):
        output = tmp_path / f"{count}.mindrecord"
        assert run(*words, "--output_file", output, "--num_process", count) == 0
        rows.append(read(output))
    for name in ("input_ids", "labels"):
        np.testing.assert_array_equal(rows[0][name], rows[1][name])
    assert len(rows[0]["labels"]) > 1000


def document(tokenizer, dialogue, length):
    made = fit(template(tokenizer, dialogue), length, Counts())
    return made.ids.tolist(), made.labels.tolist()


def test_what_is_trained(tokenizer):
    """After each answer its end, on which the next question follows; nothing of a question."""
    rounds = [("the red fox", "two blue cups"), ("who", ""), ("a", "b")]
    ids, labels = document(tokenizer, Dialogue(rounds), 1000)
    targets = dict(enumerate(labels))
    user = [n for n, index in enumerate(ids) if index == tokenizer.user_token_id]
    assistant = [n for n, index in enumerate(ids) if index == tokenizer.assistant_token_id]
    assert len(user) == len(assistant) == 3 and ids.count(2) == 1
    for start, end in zip(assistant, [*user[1:], len(ids) - 1], strict=True):
        assert targets.pop(end) == 2
        for place in range(start + 1, end):
            assert targets.pop(place) == ids[place]
    assert set(targets.values()) == {-100}


def test_ids_are_those_of_a_conversation(tokenizer):
    """What is trained is what is asked later, with the system message and forged roles in it."""
    rounds = [("the red fox", f"two{USER}"), (f"{ASSISTANT}who</s>", "b")]
    messages = [{"role": "system", "content": "Be brief."}]
    for question, answer in rounds:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    ids, labels = document(tokenizer, Dialogue(rounds, "Be brief."), 1000)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    asked = tokenizer.apply_chat_template(messages[:-1])
    assert ids[: len(asked)] == asked
    assert labels[len(asked) :] == ids[len(asked) :]
    assert labels[: len(tokenizer.encode("Be brief.")) + 1] == (
        [-100] * (len(tokenizer.encode("Be brief.")) + 1)
    )


@pytest.mark.parametrize("packing", ["False", "True"])
def test_the_first_token_is_no_target(tmp_path, model_file, packing):
    (tmp_path / "a.json").write_text(json.dumps(generated(6, 40)))
    words = ("--input_glob", tmp_path / "a.json", "--model_file", model_file, "--seq_length", 299)
    output = tmp_path / "a.mindrecord"
    assert run(*words, "--output_file", output, "--packing", packing) == 0
    rows = read(output)
    segments = rows.get("segment_ids", (rows["input_ids"] >= 0).astype(np.int32))
    starts = np.diff(segments, axis=1, prepend=0) > 0
    assert starts.sum() > len(starts) * (packing == "True")
    assert (rows["labels"][starts] == -100).all()


def test_texts_for_further_training(tmp_path, model_file):
    """As the card goes on with WikiText: paragraphs between the tokens of a text, no labels."""
    (tmp_path / "wiki.train.tokens").write_text(" = A = \n \n" + "the red fox waits \n \n" * 30)
    words = ["wiki", "--input_glob", tmp_path / "*.tokens", "--model_file", model_file]
    words += ["--seq_length", 16, "--output_file", tmp_path / "wiki.mindrecord"]
    assert run_verb("preprocess", SPEC, list(map(str, words))) == 0
    rows = read(tmp_path / "wiki.mindrecord")
    assert list(rows) == ["input_ids"] and rows["input_ids"].shape[1] == 17
    ids = rows["input_ids"].ravel().tolist()
    pairs = zip(ids, ids[1:], strict=False)
    assert {pair for pair in pairs if pair[0] == 2 or pair[1] == 1} == {(2, 1)}


def test_a_vocabulary_without_roles(tmp_path, capsys):
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    (tmp_path / "a.json").write_text(json.dumps(generated(1, 3)))
    words = ("--input_glob", tmp_path / "a.json", "--model_file", tmp_path / "tokenizer.model")
    assert run(*words, "--output_file", tmp_path / "a.mindrecord") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: chat: this vocabulary of 460 has no token <reserved_106>")
    assert not (tmp_path / "a.mindrecord").exists()


@pytest.mark.parity
@pytest.mark.skipif(not (BELLE.exists() and PUBLISHED.exists()), reason=f"{DATA} is not here")
@pytest.mark.parametrize("length", [128, 512, 4096])
def test_the_real_file(tmp_path, length):
    """All dialogues with the published vocabulary, in the card's lengths and a short one."""
    words = ("--input_glob", BELLE, "--model_file", PUBLISHED, "--seq_length", length)
    assert run(*words, "--output_file", tmp_path / "belle.mindrecord") == 0
    encode = cache(SentencePieceProcessor(model_file=str(PUBLISHED)).encode)
    given = json.loads(BELLE.read_text(encoding="utf-8"))
    expected = brute_force(encode, 195, 196, given, length + 1)
    assert found(tmp_path / "belle.mindrecord") == expected
    assert len(expected) >= 990
    assert Baichuan2Tokenizer.from_pretrained(PUBLISHED).decode(expected[0][0]).startswith(USER)
