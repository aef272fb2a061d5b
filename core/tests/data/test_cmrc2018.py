"""Questions about texts: prompts, demonstrations, answers, what is cut, what is left out."""

from __future__ import annotations

import json
from argparse import ArgumentParser

import numpy as np
import pytest

from lm_core.data.cmrc2018 import CMRC2018, answers_of, fitting, prompt_of, question_in, sentences
from lm_core.data.preprocess import Counts, encode_all
from lm_core.data.squad import read_questions
from lm_core.errors import DataError
from lm_core.tokenizer.base import Tokenizer

PAD, END = 6, 9


class Letters(Tokenizer):
    """An id for each character; what begins a text must not be in a prompt."""

    vocab_size = 0x30000

    def __init__(self, **named):
        names = {"eos_token": "<eot>", "pad_token": "<pad>", "bos_token": "<s>"} | named
        special = {"<pad>": PAD, "<eot>": END, "<s>": 1}
        super().__init__(special, **names, add_bos_token=True, split_special_tokens=True)

    def _encode(self, text):
        return [ord(character) for character in text]

    def _bytes(self, ids, after):
        return "".join(map(chr, ids)).encode()

    def _token(self, index):
        return chr(index)


def question(text, *answers):
    return {"question": text, "answers": [{"text": answer} for answer in answers]}


def write(path, *paragraphs):
    """A file with an article for each (context, questions)."""
    articles = [
        {"paragraphs": [{"context": context, "qas": qas}], "id": str(number)}
        for number, (context, qas) in enumerate(paragraphs)
    ]
    value = {"version": "v1.0", "data": articles}
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def arguments(*words):
    parser = ArgumentParser()
    CMRC2018.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def convert(dev, *words, tokenizer=None):
    """Prompts and answers as texts, the rows, and the counts."""
    args, tokenizer, counts = arguments(*words), tokenizer or Letters(), Counts()
    assert CMRC2018.columns(args) == ("input_ids", "labels")
    items = CMRC2018.read([dev], args, tokenizer, counts)
    encoded = encode_all(CMRC2018, items, tokenizer, args, 1, lambda size: None)
    rows = list(CMRC2018.records(encoded, args, tokenizer, counts))
    prompts = [tokenizer.decode(prompt_of(row, tokenizer)) for row in rows]
    answers = [[tokenizer.decode(ids) for ids in answers_of(row, tokenizer)] for row in rows]
    return prompts, answers, rows, counts


CITY = (
    "郑州在河南。开封也在。",
    [question("郑州在哪里？", "河南", "在河南", "河南"), question("谁也在？", "开封")],
)
SHIP = ("船\n红色", [question("颜色？", "红色")])  # fmt: skip


def test_a_record_id_by_id(tmp_path):
    dev = write(tmp_path / "dev.json", CITY, SHIP)
    prompts, answers, rows, counts = convert(dev, "--max_length", 70)
    assert prompts == [
        "阅读文章：郑州在河南。开封也在。\n问：郑州在哪里？\n答：",
        "阅读文章：郑州在河南。开封也在。\n问：谁也在？\n答：",
        "阅读文章：船\n红色\n问：颜色？\n答：",
    ]
    assert answers == [["河南", "在河南"], ["开封"], ["红色"]]
    letters = [ord(letter) for letter in prompts[0]]
    assert rows[0]["input_ids"].tolist() == letters + [PAD] * (70 - len(letters))
    first = [ord("河"), ord("南"), END, ord("在"), ord("河"), ord("南"), END]
    assert [row["labels"].tolist() for row in rows[:2]] == [
        first, [ord("开"), ord("封"), END, PAD, PAD, PAD, PAD]
    ]  # fmt: skip
    assert all(value.dtype == np.int32 for row in rows for value in row.values())
    assert counts == {
        "contexts": 2, "records": 3, "tokens": sum(map(len, prompts)), "answers": 4,
        "tokens of the longest prompt": max(map(len, prompts)),
    }  # fmt: skip


def test_answers_where_padding_ends_texts_too(tmp_path):
    dev = write(tmp_path / "dev.json", CITY)
    tokenizer = Letters(pad_token="<eot>")
    prompts, answers, rows, _ = convert(dev, "--max_length", 70, tokenizer=tokenizer)
    assert answers == [["河南", "在河南"], ["开封"]] and prompts[1].endswith("谁也在？\n答：")
    assert rows[1]["labels"].tolist()[2:] == [END] * 5


def test_the_first_contexts_and_the_first_questions(tmp_path):
    dev = write(tmp_path / "dev.json", CITY, SHIP, CITY)
    assert [len(convert(dev, "--n_content", n)[0]) for n in (1, 2, 3, 9)] == [2, 3, 5, 5]
    prompts, _, _, counts = convert(dev, "--n_q", 1, "--n_content", 2)
    assert [prompt.split("\n")[-2] for prompt in prompts] == ["问：郑州在哪里？", "问：颜色？"]
    assert counts["contexts"] == 2


@pytest.mark.parametrize(
    ("length", "tokens", "kept"),
    [
        (1024, 992, 992), (1024, 993, 900), (1024, 5000, 900), (250, 218, 218), (250, 219, 100),
        (199, 167, 167), (199, 168, 167), (64, 32, 32), (64, 33, 32),
    ],
)  # fmt: skip
def test_a_long_prompt_keeps_its_end(length, tokens, kept):
    assert fitting(np.arange(tokens), length).tolist() == list(range(tokens - kept, tokens))


def test_what_is_cut_is_counted_and_the_question_is_kept(tmp_path):
    dev = write(tmp_path / "dev.json", ("长" * 500, [question("颜色？", "红")]), SHIP)
    prompts, _, rows, counts = convert(dev, "--max_length", 64)
    assert prompts[0] == "长" * (32 - 9) + "\n问：颜色？\n答："
    assert (counts["prompts without their beginning"], counts["tokens cut off"]) == (1, 514 - 32)
    assert {row["input_ids"].size for row in rows} == {64}
    assert [question_in(prompt, Letters()) for prompt in prompts] == ["颜色？", "颜色？"]
    assert question_in("none", Letters()) == "none"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("一。二！三？四?五", ["一。", "二！", "三？", "四?", "五"]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("他说“好。”，又说“不。”。完", ["他说“好。”，又说“不。”。", "完"]),
        ("一，二\n三", ["一，二", "三"]),
        ("一。", ["一。"]),
    ],
)
def test_sentences(text, found):
    assert sentences(text) == found


def training(path, count=40):
    """Short and long contexts; the answer stands in one sentence of each."""
    filler = [f"第{k}句话很平常。" for k in range(60)]
    rows = []
    for k in range(count):
        parts = filler[: 3 + k] if k % 3 else [f"{'长' * 90}。"]
        context = "".join([*parts, f"答案是{k}号。"])
        rows.append(
            (context, [question(f"第{k}个？", f"{k}号", "另一个"), question("短？", "答案")])
        )
    return write(path, *rows), rows


def demonstrations(rows, prompts, length):
    """What MindFormers draws: one whole text, then five sentences, for each prompt."""
    whole, short = [], []
    for context, qas in rows:
        for qa in qas:
            answer = qa["answers"][0]["text"]
            end = f"\n问：{qa['question']}\n答：{answer}\n"
            whole.append(f"阅读文章：{context}{end}")
            for sentence in context.replace("。", "。\n").split("\n"):
                if answer in sentence:
                    short.append(f"阅读文章：{sentence}{end}")
    whole = [text for text in whole if len(text) < 400]
    short = [text for text in short if len(text) < 80]
    np.random.seed(666)
    found = []
    for prompt in prompts:
        both = []
        for pool, count in ((whole, 1), (short, 5)):
            before = ""
            for number in np.random.choice(len(pool), count):
                if len(before) + len(pool[number]) < length - len(prompt) - 10:
                    before += pool[number]
            both.append(before)
        found.append(both)
    return found


@pytest.mark.parametrize("length", [1024, 240])
def test_demonstrations_are_those_of_the_original(tmp_path, length):
    other, rows = training(tmp_path / "train.json")
    dev = write(tmp_path / "dev.json", *[(f"{city}{CITY[0]}", CITY[1]) for city in "甲乙丙丁戊己"])
    bare = convert(dev, "--max_length", length)[0]
    wanted = demonstrations(rows, bare, length)
    for column, shots in enumerate(("one_shot", "five_shot")):
        words = ("--max_length", length, "--train_file", other, "--n_shot", shots)
        prompts, _, _, counts = convert(dev, *words)
        for prompt, text, before in zip(prompts, bare, wanted, strict=True):
            assert prompt == (before[column] + text)
        lengths = {len(before[column]) for before in wanted}
        assert len(lengths) > 3 and max(lengths) > 100
        assert counts["demonstrations to draw from"] < 120
        assert convert(dev, *words)[0] == prompts


def test_zero_shots_need_no_other_file_and_do_not_read_it(tmp_path):
    dev = write(tmp_path / "dev.json", CITY)
    (tmp_path / "train.json").write_text("no JSON")
    assert convert(dev, "--train_file", tmp_path / "train.json")[0] == convert(dev)[0]


def test_no_demonstration_comes_from_the_evaluation(tmp_path):
    # Two of three contexts of the other file are asked about, one of them beyond --n_content.
    dev = write(tmp_path / "dev.json", SHIP, CITY)
    other = write(tmp_path / "train.json", CITY, ("狗是黑色的。", [question("狗？", "黑色")]), SHIP)
    words = ("--n_content", 1, "--train_file", other, "--n_shot")
    for shots in ("one_shot", "five_shot"):
        prompts, _, _, counts = convert(dev, *words, shots)
        times = 1 if shots == "one_shot" else 5
        demo = "阅读文章：狗是黑色的。\n问：狗？\n答：黑色\n"
        assert prompts == [demo * times + "阅读文章：船\n红色\n问：颜色？\n答："]
        assert counts["demonstrations left out, of a context in dev_file"] == 3
    copy = write(tmp_path / "copy.json", SHIP, CITY)
    with pytest.raises(DataError, match="^train_file: has no demonstration below 400 characters"):
        convert(dev, "--train_file", copy, "--n_shot", "one_shot")


def test_one_file_for_both_is_refused_by_whatever_name(tmp_path):
    dev = write(tmp_path / "dev.json", CITY)
    (tmp_path / "link.json").symlink_to(dev)
    for other in (dev, tmp_path / "link.json", tmp_path):
        for shots in ("zero_shot", "five_shot"):
            with pytest.raises(DataError, match="is the dev_file too; demonstrations must come"):
                convert(dev, "--train_file", other, "--n_shot", shots)


def test_impossible_flags_are_reported_together(tmp_path):
    with pytest.raises(DataError) as error:
        CMRC2018.columns(arguments("--max_length", 63, "--n_shot", "one_shot"))
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "max_length", "train_file"
    ]  # fmt: skip
    dev = write(tmp_path / "dev.json", CITY)
    with pytest.raises(DataError, match="^train_file: nowhere does not exist"):
        convert(dev, "--train_file", "nowhere")
    with pytest.raises(DataError, match="has no eos_token to end answers"):
        convert(dev, tokenizer=Letters(eos_token=None))


def test_what_is_no_question_with_an_answer_is_left_out_and_counted(tmp_path):
    dev = write(
        tmp_path / "dev.json",
        ("文", [question("好？", " ", "好", "", "好"), question("无？"), question("空？", " \n")]),
        ("", [question("谁？", "人")]),
        ("字", [question("", "人"), {"question": "x"}, {"question": 3, "answers": []}, "x", {}]),
        (None, None),
    )
    groups = list(read_questions(dev, counts := Counts()))
    assert [len(group) for group in groups] == [1, 0, 0, 0]
    assert groups[0][0].answers == ["好"]
    assert counts == {
        "questions left out, no answers": 3, "questions left out, no context": 1,
        "questions left out, no question": 4,
    }  # fmt: skip
    assert convert(dev)[1] == [["好"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: is no JSON (Expecting property name enclosed in double quotes); the file "
         "must be one JSON value; mend it"),
        ("[]", 'has no list "data"; must be of SQuAD\'s form'),
        ('{"data": 3}', 'has no list "data"'),
        ('{"data": []}', "dev_file: has no question with an answer (the input holds none)"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "q"}]}]}]}',
         "dev_file: has no question with an answer (questions left out, no answers: 1)"),
    ],
)  # fmt: skip
def test_a_file_without_questions_is_one_error(tmp_path, text, message):
    (tmp_path / "dev.json").write_text(text)
    with pytest.raises(DataError) as error:
        convert(tmp_path / "dev.json")
    (problem,) = error.value.problems
    assert message in problem


def test_items_do_not_change_the_rows(tmp_path, monkeypatch):
    other, _ = training(tmp_path / "train.json")
    dev = write(tmp_path / "dev.json", CITY, SHIP, CITY)
    words = ("--train_file", other, "--n_shot", "five_shot", "--max_length", 400)
    whole = convert(dev, *words)
    monkeypatch.setattr("lm_core.data.cmrc2018._ITEM", 1)
    assert len(list(CMRC2018.read([dev], arguments(*words), Letters(), Counts()))) == 5
    parts = convert(dev, *words)
    assert parts[:2] == whole[:2] and parts[3] == whole[3]
