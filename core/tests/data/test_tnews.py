"""Prompts for several labels: the right ids are scored, and no example is evaluated."""

from __future__ import annotations

import hashlib
import json
import random
from argparse import ArgumentParser, Namespace
from collections import Counter

import numpy as np
import pytest
from outside import DATA

from lm_core.data import tnews
from lm_core.data.tnews import COLUMNS, SHOTS, TNEWS, WORDS
from lm_core.errors import DataError
from lm_core.tokenizer.base import Tokenizer

PAD, END = 0, 2


class Characters(Tokenizer):
    """An id for each character."""

    vocab_size = 0x30000

    def __init__(self, **options):
        super().__init__(
            {"<pad>": PAD, "</s>": END}, eos_token="</s>", pad_token="<pad>",
            split_special_tokens=True, **options,
        )  # fmt: skip

    def _encode(self, text):
        return [ord(character) for character in text]


class Pairs(Characters):
    """An id for each two characters, so that the last of a prompt may go with a text's first."""

    def _encode(self, text):
        return [sum(ord(one) << 8 * k for k, one in enumerate(text[k : k + 2]))
                for k in range(0, len(text), 2)]  # fmt: skip


NAMES = tuple(WORDS)[:6]
LABELS = [{"label": str(100 + k), "label_desc": name} for k, name in enumerate(NAMES)]


def lines(path, rows):
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def some_rows(count, seed=0):
    draw = random.Random(seed)
    return [
        {"label_desc": draw.choice(NAMES), "sentence": f"{k}{'文章新闻'[: k % 5]} {seed}"}
        for k in range(count)
    ]


@pytest.fixture
def convert(tmp_path):
    """`convert(rows, *flags, tokenizer=, labels=, shots=)` -> rows of the records, counts."""

    def run(rows, *flags, tokenizer=None, labels=LABELS, shots=None):
        words = ["--label_file", str(lines(tmp_path / "labels.json", labels)), *flags]
        if shots is not None:
            words += ["--shot_file", str(lines(tmp_path / "train.json", shots))]
        parser = ArgumentParser()
        TNEWS.add_arguments(parser)
        args = parser.parse_args(words)
        assert TNEWS.columns(args) == COLUMNS
        counts, encoder = Counter(), tokenizer or Characters()
        items = TNEWS.read([lines(tmp_path / "dev.json", rows)], args, encoder, counts)
        encoded = (TNEWS.encode(encoder, args, item.work) for item in items)
        return list(TNEWS.records(encoded, args, encoder, counts)), counts

    return run


def texts(row, count=4):
    """Of each prompt of a record: what stands before what is scored, that, and the rest."""
    found = []
    pairs = zip(*(np.split(row[name], count) for name in (COLUMNS[0], COLUMNS[2])), strict=True)
    for ids, mask in pairs:
        (places,) = np.nonzero(mask)
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        parts = np.split(ids, [places[0], places[-1] + 1])
        found.append(["".join(map(chr, part)) for part in parts])
    return found


def test_each_prompt_names_another_label_and_the_text_is_scored(convert):
    rows = some_rows(40)
    records, counts = convert(rows)
    assert len(records) == counts["records"] == 40
    longest = max(len(row["sentence"]) for row in rows) + len("这是关于文化的文章：")
    seen = Counter()
    for row, record in zip(rows, records, strict=True):
        assert [record[name].size for name in COLUMNS] == [4 * longest, 1, 4 * longest]
        assert all(record[name].dtype == np.int32 for name in COLUMNS)
        found, words = texts(record), []
        for head, text, rest in found:
            assert text == row["sentence"] and not rest.strip("\0")
            assert head.startswith("这是关于") and head.endswith("的文章：")
            words.append(head[4:6])
        assert len(set(words)) == 4 and set(words) <= set(WORDS.values())
        assert words[record["labels"][0]] == WORDS[row["label_desc"]]
        seen[int(record["labels"][0])] += 1
    assert min(seen[k] for k in range(4)) > 3
    assert counts["scored tokens"] == 4 * sum(len(row["sentence"]) for row in rows)
    assert counts["ids of a row"] == longest


def test_an_id_across_the_seam_is_scored(convert):
    """Ids are those of the whole row, and the first that the prompt alone has not is scored."""
    rows = some_rows(12)
    for template in ("标{}:{}", "标{}::{}", "{}{}!"):
        records, _ = convert(rows, "--prompt_text", template, tokenizer=Pairs())
        for row, record in zip(rows, records, strict=True):
            for part, mask in zip(
                np.split(record["input_ids"], 4), np.split(record["attention_mask"], 4), strict=True
            ):
                word = next(w for w in WORDS.values() if Pairs().encode(f"标{w}")[0] == part[0]
                            or Pairs().encode(w)[0] == part[0])  # fmt: skip
                head = template.split("{}")[0] + word + template.split("{}")[1]
                whole = Pairs().encode(head + row["sentence"] + template.split("{}")[2])
                assert part[: len(whole)].tolist() == whole
                start = max(1, len(head) // 2)
                wanted = [start <= at < len(whole) for at in range(len(part))]
                assert mask.tolist() == wanted


def test_the_first_id_is_never_scored_and_tokens_before_a_text_are_kept(convert):
    template = ("--prompt_text", "{}{}")
    bare, _ = convert(some_rows(3), *template, tokenizer=Pairs())
    assert all(np.split(row["attention_mask"], 4)[2][:2].tolist() == [0, 1] for row in bare)
    begun, _ = convert(
        some_rows(3), tokenizer=Characters(bos_token="</s>", add_bos_token=True, add_eos_token=True)
    )
    for row in begun:
        assert all(head[0] == chr(END) and chr(END) not in text for head, text, _ in texts(row))


def test_all_labels_can_be_asked_for(convert):
    records, _ = convert(some_rows(9), "--num_labels", "6")
    for record in records:
        assert {head[4:6] for head, _, _ in texts(record, 6)} == {WORDS[name] for name in NAMES}


def test_what_is_too_long_keeps_its_beginning(convert):
    rows = [{"label": 100, "sentence": "abcdefghij"}, {"label": "101", "sentence": "xy"}]
    head = len("这是关于文化的文章：")
    records, counts = convert(rows, "--max_length", str(head + 4))
    assert [text for _, text, _ in texts(records[0])] == ["abcd"] * 4
    assert [text for _, text, _ in texts(records[1])] == ["xy"] * 4
    assert counts["texts cut to max_length"] == 1 and counts["tokens cut off"] == 4 * 6
    assert counts["ids of a row"] == head + 4
    with pytest.raises(DataError, match=r"no text is left to score \(rows left out, no id of the"):
        convert(rows, "--max_length", str(head))


def test_rows_without_a_text_or_a_known_label_are_counted(convert):
    bad = [
        "{broken", [1], {"label_desc": NAMES[0]}, {"label_desc": NAMES[0], "sentence": " "},
        {"sentence": "a", "label_desc": None}, {"label": "999", "sentence": "a"},
        {"label": "999", "sentence": "b"},
    ]  # fmt: skip
    records, counts = convert([*bad, {"label": "102", "sentence": "here"}])
    assert len(records) == 1 and texts(records[0])[0][1] == "here"
    left_out = {name: count for name, count in counts.items() if "left out" in name}
    assert left_out == {
        "rows left out, no JSON": 1, "rows left out, no object": 1,
        "rows left out, no text 'sentence'": 1, "rows left out, empty 'sentence'": 1,
        "rows left out, no label": 1, "rows left out, unknown label": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"no row with sentence and label \(.*unknown label: 2"):
        convert(bad)


@pytest.mark.parametrize("name", ["label_desc_ch", "label_zh"])
def test_words_of_the_label_file_win(convert, name):
    labels = [{**line, name: f"w{k}"} for k, line in enumerate(LABELS)]
    labels.append({"label": "1", "label_desc": "mine", name: "新"})
    records, _ = convert([{"label_desc": "mine", "sentence": "a"}], labels=labels)
    heads = [head for head, _, _ in texts(records[0])]
    assert heads[records[0]["labels"][0]] == "这是关于新的文章："
    assert all(head[4:6] in {f"w{k}" for k in range(6)} | {"新的"} for head in heads)
    with pytest.raises(DataError, match=r"labels.json line 7: label 'mine' has no word .* add it"):
        convert([], labels=[*LABELS, {"label": "1", "label_desc": "mine"}])


@pytest.mark.parametrize("name", SHOTS)
def test_shots_stand_before_every_prompt_and_are_not_evaluated(convert, name):
    rows, shots = some_rows(30), some_rows(30, seed=1)
    shots[3]["sentence"] = "长" * 200
    evaluated = {row["sentence"] for row in rows}
    records, counts = convert(rows, "--n_shot", name, shots=[*rows, *shots])
    alone, _ = convert(rows)
    heads = set()
    for record, bare in zip(records, alone, strict=True):
        for (head, text, _), (prompt, same, _) in zip(texts(record), texts(bare), strict=True):
            assert text == same and head.endswith(prompt)
            heads.add(head.removesuffix(prompt))
        assert record["labels"] == bare["labels"]
    (head,) = heads
    found = head.splitlines()
    assert len(found) == SHOTS[name] and head.count("\n") == SHOTS[name]
    known = {f"这是关于{WORDS[row['label_desc']]}的文章：{row['sentence']}"[:150] for row in shots}
    assert set(found) <= known and not any(shot[10:] in evaluated for shot in found)
    assert len({shot[4:6] for shot in found}) == SHOTS[name]  # each of another label
    if SHOTS[name]:
        assert counts["texts of the input in --shot_file, not taken"] == 30


def test_with_a_file_of_shots_there_is_one(convert):
    rows, shots = some_rows(5), some_rows(9, seed=1)
    given, _ = convert(rows, shots=shots)
    one, _ = convert(rows, "--n_shot", "one_shot", shots=shots)
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(given, one, strict=True) for n in COLUMNS)


def test_the_seed_decides(convert):
    def chosen(*flags):
        return [row["input_ids"].tolist() for row in convert(some_rows(20), *flags)[0]]

    assert chosen() == chosen("--seed", "2") != chosen("--seed", "3")


def test_items_do_not_change_the_rows(convert, monkeypatch):
    whole = convert(some_rows(25))
    monkeypatch.setattr(tnews, "_ITEM", 1)
    parts = convert(some_rows(25))
    assert parts[1] == whole[1]
    for one, other in zip(parts[0], whole[0], strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in COLUMNS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt_text", "关于{}"], "prompt_text: '关于{}' has 1 places marked {}; must be two"),
        (["--num_labels", "1"], "num_labels: 1 leaves nothing to choose; use at least 2"),
        (["--num_labels", "7"], "num_labels: is 7; .* has words for 6 labels; use at most 6"),
        (["--seed", "-1"], "seed: is -1; must be 0 or more"),
        (["--n_shot", "five_shot"], "n_shot: five_shot needs examples; .* add --shot_file"),
        (["--shot_file", "nowhere"], "shot_file: nowhere does not exist"),
        (["--label_file", "nowhere"], "label_file: nowhere does not exist"),
    ],
)
def test_flags_that_cannot_be(convert, flags, message):
    with pytest.raises(DataError, match=message) as error:
        convert(some_rows(3), *flags)
    assert len(error.value.problems) == 1


def test_files_that_hold_no_shots(convert, tmp_path):
    rows = some_rows(8)
    dev = str(lines(tmp_path / "dev.json", rows))
    with pytest.raises(DataError, match="shot_file: .*dev.json is the input; examples must be"):
        convert(rows, "--shot_file", dev)
    with pytest.raises(DataError, match="has 0 texts with a known label that are not in the input"):
        convert(rows, shots=rows)
    with pytest.raises(
        DataError, match=r"has 4 texts .*\(rows left out, no label: 1\); must be at"
    ):
        convert(rows, "--n_shot", "five_shot", shots=[*some_rows(4, seed=1), {"sentence": "a"}])


def test_candidates_of_the_published_file_are_the_published_ones():
    """Drawn once with the script of MindFormers; without its shots, of which it draws first."""
    folder = DATA / "tnews"
    if not (folder / "dev.json").is_file():
        pytest.skip(f"{folder} is not here")
    args = Namespace(
        label_file=str(folder / "labels.json"), n_shot=None, shot_file=None, num_labels=4, seed=2,
        prompt_text=tnews.PROMPT,
    )  # fmt: skip
    items = TNEWS.read([folder / "dev.json"], args, Characters(), Counter())
    found = [question for item in items for question in item.work[1]]
    assert len(found) == 10000
    assert found[0].words == ("故事", "汽车", "房产", "娱乐") and found[0].label == 3
    text = json.dumps([list(question.words) for question in found], ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "097104f68531d3c719a135154b6f27f48bae1157a72d4cc6a0bd864b714ca288"
    )
