"""Questions with answers: what is trained of them, what is cut, what is left out."""

from __future__ import annotations

import json
import logging
import random
from argparse import ArgumentParser

import numpy as np
import pytest

from lm_core.data import adgen, answers
from lm_core.data.adgen import ADGEN, AnswerRecords, find_file
from lm_core.data.answers import Lengths, Pair
from lm_core.data.pipeline import BatchIterator
from lm_core.data.preprocess import Counts, encode_all
from lm_core.errors import DataError, TokenizerError
from lm_core.tokenizer.base import Tokenizer
from lm_core.train.batch import causal_batch

PAD, END, MASK, SOP = 0, 2, 7, 8


class Asking(Tokenizer):
    """An id for each character; a text begins with two tokens of its own."""

    vocab_size = 0x30000

    def __init__(self, **named):
        names = {"eos_token": "</s>", "pad_token": "<pad>"} | named
        super().__init__({"<pad>": PAD, "</s>": END}, **names, split_special_tokens=True)

    def _encode(self, text):
        return [ord(character) for character in text]

    def build_inputs(self, ids):
        return [MASK, SOP, *ids]

    def build_prompt(self, query, history=None):
        return f"<{query}>"


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def some_rows(count, seed=0, longest=12):
    draw = random.Random(seed)
    letters = "abc defg 上衣#*裙\u3000"

    def text():
        return "x" + "".join(draw.choice(letters) for _ in range(draw.randrange(longest)))

    return [{"content": text(), "summary": text()} for _ in range(count)]


def oracle(row, source, target, length, pad_label):
    """The record of a row, token by token, as lists of (id, label)."""
    content = row["content"]
    while len(content) + 4 > source:  # two tokens of the text, two characters around it
        content = content[:-1]
    found = [(MASK, -100), (SOP, -100), (ord("<"), -100)]
    for character in content:
        found.append((ord(character), -100))
    found.append((ord(">"), -100))
    for number, character in enumerate(row["summary"]):
        if number < target:
            found.append((ord(character), ord(character)))
    found.append((END, END))
    while len(found) < length:
        found.append((PAD, pad_label))
    return found


@pytest.mark.parametrize(("source", "target", "length"), [(9, 6, 16), (30, 20, 60), (5, 1, 7)])
@pytest.mark.parametrize("train_padding", [False, True])
def test_records_token_by_token(tmp_path, source, target, length, train_padding):
    rows = some_rows(60)
    records = AnswerRecords(
        write(tmp_path / "x.json", rows), Asking(), Lengths(source, target), length=length,
        train_padding=train_padding,
    )  # fmt: skip
    assert len(records) == 60 and records.row_length == length
    for number, found in enumerate(records.stream(range(60))):
        wanted = oracle(rows[number], source, target, length, PAD if train_padding else -100)
        pairs = zip(found["input_ids"].tolist(), found["labels"].tolist(), strict=True)
        assert list(pairs) == wanted
        assert found["input_ids"].dtype == found["labels"].dtype == np.int32


def test_the_first_token_of_the_answer_and_its_end_are_targets(tmp_path):
    file = write(tmp_path / "x.json", [{"content": "q", "summary": "ab"}])
    records = AnswerRecords(file, Asking(), Lengths(6, 3))
    inputs, labels = causal_batch(records.read([0]), PAD, END)
    pairs = list(zip(inputs[0].tolist(), labels[0].tolist(), strict=True))
    assert pairs[4:8] == [(ord(">"), ord("a")), (ord("a"), ord("b")), (ord("b"), END), (END, -100)]
    assert all(label == -100 for _, label in pairs[:4])


def test_without_a_length_records_hold_the_longest_prompt_and_answer(tmp_path):
    file = write(tmp_path / "x.json", some_rows(5, longest=40))
    assert AnswerRecords(file, Asking(), Lengths(9, 6)).row_length == 16


def test_a_long_prompt_keeps_the_words_around_its_content(pieces):
    pieces.build_prompt = lambda query: f"USER: {query}\n\n答："
    head, tail = pieces.encode("USER:"), pieces._encode("\n\n答：")[1:]
    draw = random.Random(4)
    for _ in range(50):
        content = "".join(draw.choice("lobster 水cold上") for _ in range(40))
        most = draw.randrange(len(head) + len(tail) + 4, 70)
        found = answers.prompt_ids(pieces, content, most)
        assert len(found) <= most
        assert found[: len(head)] == head and found[-len(tail) :] == tail
        text = pieces.model.decode(found)
        kept = text.removeprefix("USER: ").removesuffix("\n\n答：")
        assert content.startswith(kept)
        # One more character would not have fitted, or nothing had to be cut.
        longer = pieces.encode(pieces.build_prompt(content[: len(kept) + 1]))
        assert kept == content or len(longer) > most


def test_rows_that_are_none_are_left_out_and_counted(tmp_path, caplog):
    good = {"content": "q", "summary": "a", "more": 1}
    rows = [
        good, "no json", "", '["list"]', {"content": "q"}, {"content": "", "summary": "a"},
        {"content": "q", "summary": " \n"}, {"content": 3, "summary": "a"}, "{broken", good,
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        records = AnswerRecords(write(tmp_path / "x.json", rows), Asking(), Lengths(6, 3))
    assert len(records) == 2
    assert [records.locate(k) for k in range(2)] == [f"{records.path} line {k}" for k in (1, 10)]
    text = caplog.messages[-1]
    for part in (
        "2 rows are used", "no JSON: 2", "no object: 1", "no text 'summary': 1",
        "empty 'content': 1", "empty 'summary': 1", "no text 'content': 1",
    ):  # fmt: skip
        assert part in text, part
    assert len([m for m in caplog.messages if "no JSON (only the first" in m]) == 1
    assert f"{records.path} line 2:" in caplog.messages[0]


def test_other_columns_and_an_array(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"in": "q", "out": "ä", "content": "no", "summary": "no"}]))
    records = AnswerRecords(path, Asking(), Lengths(6, 3), origin=("in", "out"))
    assert records.pairs == [Pair("q", "ä", f"{path} record 1")]


@pytest.mark.parametrize("text", ["", "\n\n", "not json\n", '{"a": 1}\n', "[]"])
def test_a_file_without_rows_is_one_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"has no row with content and summary \(") as error:
        AnswerRecords(path, Asking(), Lengths(6, 3))
    assert len(error.value.problems) == 1


def test_a_folder_holds_the_file_by_name(tmp_path):
    path = write(tmp_path / "dev.json", [])
    key = "eval_dataset.data_loader"
    assert find_file(tmp_path, "dev.json", key) == find_file(path, "dev.json", key) == path
    with pytest.raises(DataError, match=f"^{key}.dataset_dir: {tmp_path} holds no train.json;"):
        find_file(tmp_path, "train.json", key)
    with pytest.raises(DataError, match="nowhere does not exist; must be a file of JSON lines"):
        find_file(tmp_path / "nowhere", "train.json", key)
    with pytest.raises(DataError, match=f"set {key}.type=MindDataset"):
        find_file(tmp_path / "x.mindrecord", "train.json", key)


def test_what_is_wrong_with_all_records_is_found_before_the_first(tokenizer):
    answers.check_tokenizer(Asking(), Lengths(5, 1))
    with pytest.raises(DataError, match="^a.max_source_length: is 4; must be more than the 4 tok"):
        answers.check_tokenizer(Asking(), Lengths(4, 1), "a.")
    with pytest.raises(DataError, match="has no eos_token to end answers"):
        answers.check_tokenizer(Asking(eos_token=None), Lengths(5, 1))
    with pytest.raises(TokenizerError, match="ByteLevelBpe has no form for questions"):
        answers.check_tokenizer(tokenizer, Lengths(5, 1))


@pytest.fixture
def records(tmp_path):
    file = write(tmp_path / "x.json", some_rows(23))
    return AnswerRecords(file, Asking(), Lengths(9, 6), length=20)


def batches(records, **options):
    return BatchIterator(records, 4, seed=3, **options)


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name])


def test_resumed_in_the_middle_of_an_epoch(records):
    first = batches(records)
    whole = [*first, *first]
    for stop in range(1, 2 * first.steps_per_epoch):
        before = batches(records)
        taken = []
        while len(taken) < stop:
            for batch in before:
                taken.append(batch)
                if len(taken) == stop:
                    break
        after = batches(records)
        after.load_state(json.loads(json.dumps(before.state())))
        rest = [*after] if after.epoch else [*after, *after]
        same([*taken, *rest], whole)


def test_ranks_read_their_slices_of_one_batch(records):
    whole = list(batches(records))
    parts = [list(batches(records, dp_rank=rank, dp_size=2)) for rank in range(2)]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*parts, strict=True)
    ]
    same(joined, whole)


def test_the_first_rows_alone_and_wrong_numbers(records):
    few = records.first(5)
    assert len(few) == 5 and len(records) == 23
    assert few.read([4])["input_ids"].tolist() == records.read([4])["input_ids"].tolist()
    with pytest.raises(IndexError, match="numbered 0 to 4"):
        few.read([5])


def flags(*words):
    parser = ArgumentParser()
    ADGEN.add_arguments(parser)
    return parser.parse_args(words)


def test_preprocessed_records_are_those_of_the_file(records):
    args = flags("--max_source_length", "9", "--max_target_length", "6", "--seq_length", "19")
    assert ADGEN.columns(args) == ("input_ids", "labels")
    counts = Counts()
    items = ADGEN.read([records.path], args, Asking(), counts)
    encoded = encode_all(ADGEN, items, Asking(), args, 1, lambda size: None)
    same(list(ADGEN.records(encoded, args, Asking(), counts)), list(records.stream(range(23))))
    assert counts["records"] == 23
    assert counts["trained tokens"] == sum(
        int((row["labels"] >= 0).sum()) for row in records.stream(range(23))
    )


def test_flags_of_preprocess():
    assert adgen._row_length(flags()) == 194
    with pytest.raises(DataError, match="seq_length: is 191; must be at least 192 to hold"):
        ADGEN.columns(flags("--seq_length", "191"))
    args = flags("--origin_columns", "a", "b")
    with pytest.raises(DataError, match=r"has no row with a and b \(the input holds none\)"):
        list(ADGEN.records(iter([]), args, Asking(), Counts()))
