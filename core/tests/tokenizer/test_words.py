"""Words against jieba itself, whose way of finding them this is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from outside import CHINESE, chinese_texts, jieba_tokenizer

from lm_core.tokenizer import word_tables, words
from lm_core.tokenizer.word_guess import Guesses
from lm_core.tokenizer.word_tables import read
from lm_core.tokenizer.words import cut

VECTORS = json.loads(Path(__file__).with_name("words_vectors.json").read_text())["words"]


@pytest.fixture(scope="module")
def jieba():
    return jieba_tokenizer()


@pytest.mark.parametrize("expected", VECTORS, ids=range(len(VECTORS)))
def test_recorded_words(expected):
    assert cut("".join(expected)) == expected


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", CHINESE)
def test_the_words_of_real_texts(jieba, name):
    texts = chinese_texts(name)
    for start in range(0, len(texts), 1000):
        part = "\n".join(texts[start : start + 1000])
        assert cut(part) == list(jieba.cut(part))


def test_the_words_of_random_texts(jieba):
    draw = random.Random(0)
    common = [word for word, count in jieba.FREQ.items() if count > 300]
    kinds = (
        lambda: draw.choice(common),
        lambda: draw.choice(common)[: draw.randint(1, 3)],
        lambda: draw.choice(common)[-1],
        lambda: chr(draw.randint(0x4E00, 0x9FD9)),
        lambda: chr(draw.choice((0x3400, 0x20BB7, 0x3042, 0xAC00, 0xFF10, 0x1F600, 0x3000))),
        lambda: draw.choice("\r\n \t\x00\x1c\u0085\u2028\u200b\u0660²"),
        lambda: draw.choice("+#&._%-<>，。、γ·0189aZ"),
        lambda: draw.choice(("3.14", "50%", "C++", "AA制", "\r\n", "γ射线", "x.5%")),
    )
    for _ in range(4000):
        few = draw.sample(kinds, draw.randint(1, 4))
        text = "".join(draw.choice(few)() for _ in range(draw.randint(1, 25)))
        assert cut(text) == list(jieba.cut(text)), repr(text)


def test_rounding_decides_as_in_jieba(jieba):
    """Of words with equal products; sums in another order would often choose the other ones."""
    draw = random.Random(1)
    rare = [word for word, count in jieba.FREQ.items() if count == 3 and len(word) == 2]
    begins = {}
    for word in rare:
        begins.setdefault(word[0], word)
    # "AB" and "BC" are as frequent as each other, "A" and "C" differ.
    texts = [word + begins[word[1]][1] for word in rare if word[1] in begins]
    for between in ("", "，"):
        for _ in range(300):
            text = between.join(draw.sample(texts, 12))
            assert cut(text) == list(jieba.cut(text))


def test_a_dictionary_where_most_products_are_equal(jieba, tmp_path):
    """Some characters are no words there although others begin with them."""
    draw = random.Random(3)
    for number in range(30):
        made = {
            "".join(draw.choice("甲乙丙丁x") for _ in range(draw.choice((1, 2, 2, 3, 4, 5))))
            for _ in range(draw.randint(5, 60))
        }
        file = tmp_path / f"{number}.txt"
        file.write_text("".join(f"{word} {draw.choice((0, 1, 2, 2, 4))} n\n" for word in made))
        theirs = type(jieba)(str(file))
        theirs.FREQ, theirs.total = theirs.gen_pfdict(file.open("rb"))
        theirs.initialized = True
        ours = words._Cutter(word_tables.Dictionary(word_tables._arrays(file)), read()[1])
        for _ in range(60):
            text = "".join(draw.choice("甲乙丙丁x甲乙丙丁，") for _ in range(draw.randint(1, 30)))
            assert ours.words(text) == list(theirs.cut(text))


def test_what_no_dictionary_has_is_guessed_as_in_jieba():
    from jieba.finalseg import cut as guess

    draw = random.Random(2)
    dictionary, model = read()
    every = map(chr, range(0x4E00, 0x9FD6))
    unseen = [character for character in every if character not in model.emissions]
    kinds = [*model.emissions], unseen, ["的", "龙", "王", "a", "1.5%"]
    guesses = Guesses(dictionary.weights, model)
    for _ in range(4000):
        few = draw.sample(kinds, draw.randint(1, 3))
        text = "".join(draw.choice(draw.choice(few)) for _ in range(draw.randint(2, 16)))
        if text not in dictionary.weights:
            assert guesses[text] == list(guess(text)), text


@pytest.mark.parametrize("text", ["龘", "好", "x", "。", " ", "是", "欧阳修远，", "1.5"])
def test_long_texts_are_cut_in_parts(jieba, text, monkeypatch):
    monkeypatch.setattr(words, "_PART", 100)
    whole = text * 500
    assert cut(whole) == list(jieba.cut(whole))
    assert cut(f"{whole}\n{text}\r\n{whole}") == list(jieba.cut(f"{whole}\n{text}\r\n{whole}"))


def test_kept_guesses_are_few(monkeypatch):
    monkeypatch.setattr("lm_core.tokenizer.word_guess._KEPT", 4)
    guesses = Guesses(*(lambda found: (found[0].weights, found[1]))(read()))
    for run in ("龘龘", "鬱鬱", "麤麤", "靐靐", "齉齉", "龘" * 50):
        assert "".join(guesses[run]) == run
    assert len(guesses) <= 4


def test_words_together_are_the_text_and_nothing_is_said(tmp_path):
    assert cut("") == []
    script = "from lm_core.tokenizer.words import cut; print(cut('我来到北京清华大学'))"
    environment = {
        "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "own"),
        "PYTHONPATH": ":".join(sys.path), "LANG": "C.UTF-8",
    }  # fmt: skip
    for _ in range(2):  # the second finds what the first kept
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True, text=True, env=environment, timeout=60,
        )  # fmt: skip
        assert done.stdout == "['我', '来到', '北京', '清华大学']\n" and done.stderr == ""
        assert [path.name for path in tmp_path.iterdir()] == ["own"]
        (kept,) = (tmp_path / "own" / "lm").iterdir()
        assert kept.name.startswith("words-")


def test_the_second_process_does_not_import_jieba(tmp_path):
    script = (
        "import sys; from lm_core.tokenizer.words import cut; cut('我来到'); "
        "print('jieba' in sys.modules)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True, text=True, env=environment, timeout=60, check=True,
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    assert found == ["True", "False"]
