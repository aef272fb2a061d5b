"""PanGu-alpha's tokenizer against jieba and sentencepiece, called as the published program does.

Without the published vocabulary a small one stands in: of the same kind, learnt from a few
sentences, with the same special tokens under the same ids.
"""

from __future__ import annotations

import json
import pickle
import random
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from outside import CHINESE, DATA, chinese_texts, jieba_tokenizer
from sentencepiece import SentencePieceProcessor

from lm_core import AutoTokenizer
from lm_core.cli import run_verb
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import TokenizerError
from lm_core.generation.streamer import TextPieces
from lm_core.testing import tiny
from lm_pangualpha import SPEC
from lm_pangualpha.tokenizer import BLANK, LINE_END, UNKNOWN, PanguAlphaTokenizer

VOCABULARY = DATA / "pangu_alpha"
CASES = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())["cases"]
TEXTS = [case["text"] for case in CASES]
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"{VOCABULARY} is not here")
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<sep>": 5, "<pad>": 6, "<mask>": 7, "<eod>": 8,
           "<eot>": 9}  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return AutoTokenizer.from_pretrained(VOCABULARY)


@pytest.fixture(scope="module")
def library():
    return SentencePieceProcessor(model_file=str(VOCABULARY / "vocab.model"))


@pytest.fixture(scope="module")
def model():
    sentences = ("你好，今天天气不错。", "上联：欢天喜地度佳节 下联：", "他说我们去北京看雪。")
    symbols = [LINE_END, BLANK, "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    return tiny.sentencepiece_model(
        sentence_iterator=iter([*sentences, tiny.text(200)]), model_type="unigram",
        vocab_size=120, hard_vocab_limit=False, byte_fallback=False,
        normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True,
        split_digits=False, user_defined_symbols=symbols,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small(model):
    return PanguAlphaTokenizer(model)


@pytest.fixture(scope="module")
def jieba():
    return jieba_tokenizer()


def by_the_original(jieba, library, text):
    spelt = str.maketrans(" \n", f"{BLANK}{LINE_END}")
    return library.encode(" ".join(word.translate(spelt) for word in jieba.cut(text)))


def shown_by_the_original(library, ids):
    return library.decode(ids).replace(" ", "").replace(BLANK, " ").replace(LINE_END, "\n")


def streamed(tokenizer, ids):
    pieces = TextPieces(tokenizer, skip_special_tokens=False)
    return "".join(pieces.push([index]) for index in ids) + pieces.flush()


def hard_text(draw):
    """Anything that could go wrong at a cut, with many ends of lines."""
    parts = (
        "你好", "天气", "的", "龘", "\r\n", "\n", "\n", "\r", " ", "\t", "\u3000", "a", "3.14",
        "<eot>", "\u0301", "\u200b", "\ufeff", "\x00", "\u0085", "\u2028", "ﬁ", "①", "ｶﾞ", "▁",
        BLANK, LINE_END, "\U0001f600", "\u200d", "。", "<", "\ud83d", "\ude00",
    )  # fmt: skip
    return "".join(draw.choice(parts) for _ in range(draw.randint(1, 60)))


@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ids_are_the_original_ones(published, library, case):
    text, ids, decoded = (CASES[case][name] for name in ("text", "ids", "decoded"))
    assert published.encode(text) == published(text)["input_ids"] == ids
    assert published.encode_within(text) == ids
    assert published.decode(ids) == shown_by_the_original(library, ids) == decoded
    assert streamed(published, ids) == decoded


@needs_vocabulary
def test_the_numbers_of_the_vocabulary(published):
    assert isinstance(published, PanguAlphaTokenizer)
    config = SPEC.presets["pangualpha_2_6b"]
    assert published.vocab_size == len(published) == config.vocab_size == 40000
    assert published.special == SPECIAL
    assert (published.eos_token_id, published.pad_token_id) == (9, 6)
    assert (config.eos_token_id, config.pad_token_id, config.eod_token_id) == (9, 6, 6)
    assert published.encode("你好，今天天气不错。") == [5772, 10, 465, 235, 464, 1123, 12]


@pytest.mark.slow
@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("name", CHINESE)
def test_real_texts(published, library, jieba, name):
    """Ids and decoded texts are the original ones, and lines encoded alone give the same."""
    texts = chinese_texts(name, CHINESE[name][-1 if name != "belle" else 0])
    assert len(texts) > 300
    for text in texts:
        ids = by_the_original(jieba, library, text)
        assert published.encode(text) == published.encode_piece(text).tolist() == ids
        assert published.decode(ids) == shown_by_the_original(library, ids)


@needs_vocabulary
@pytest.mark.parametrize("name", CHINESE)
def test_pieces_of_real_texts_are_the_whole(published, name):
    whole = "\n".join(chinese_texts(name, CHINESE[name][-1]))
    draw, places = random.Random(0), [0, len(whole)]
    while len(places) < 30:
        at = whole.index("\n", draw.randrange(len(whole) // 2))
        places += [at] if published.cuts_at(whole[at - 1], "\n") else [at + 1]
    cuts = pairwise(sorted(set(places)))
    pieces = [published.encode_piece(whole[start:end]) for start, end in cuts]
    assert np.array_equal(np.concatenate(pieces), published.encode_piece(whole))


@needs_vocabulary
def test_random_texts_are_as_by_the_original(published, library, jieba):
    draw = random.Random(0)
    for _ in range(1500):
        text = hard_text(draw)
        # Halves of characters have no UTF-8; the original fails at them.
        valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = by_the_original(jieba, library, valid)
        assert published.encode(text) == ids
        assert published.decode(ids) == streamed(published, ids)
        assert published.decode(ids) == shown_by_the_original(library, ids)


@needs_vocabulary
def test_random_ids_are_shown_as_by_the_original(published, library):
    draw = random.Random(2)
    for _ in range(2000):
        ids = [draw.randrange(draw.choice((10, 200, 40000))) for _ in range(draw.randint(1, 70))]
        assert published.decode(ids) == streamed(published, ids)
        assert published.decode(ids) == shown_by_the_original(library, ids)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_pieces_of_its_words(small, model, jieba, text):
    library = SentencePieceProcessor(model_proto=model)
    ids = by_the_original(jieba, library, text)
    assert small.encode(text) == small.encode_within(text) == ids
    assert set(ids).isdisjoint(small.all_special_ids[1:])
    shown = shown_by_the_original(library, ids)
    assert small.decode(ids) == streamed(small, ids) == shown
    assert small.decode_within(ids) == shown.replace(UNKNOWN, "")


@pytest.mark.parametrize("kind", ["small", "bytes"])
def test_pieces_of_random_texts_are_the_whole(small, kind):
    """Wherever `cuts_at` says so; a vocabulary that keeps blanks and knows bytes is harder."""
    if kind == "bytes":
        model = tiny.sentencepiece_model(user_defined_symbols=[BLANK, "<pad>", "<eot>"])
        small = PanguAlphaTokenizer(model)
    draw = random.Random(1)
    cuts = 0
    for _ in range(1000):
        text = hard_text(draw)
        whole = small.encode_piece(text).tolist()
        for at in range(1, len(text)):
            if small.cuts_at(text[at - 1], text[at]):
                cuts += 1
                left, right = (small.encode_piece(part).tolist() for part in (text[:at], text[at:]))
                assert left + right == whole, (text, at)
        assert whole == small.encode(text), text
    assert cuts > 2000


def test_a_line_end_of_two_characters_is_not_cut(small):
    assert (
        small.cuts_at("\r\n", "a") and small.cuts_at("a", "\r\n"[1:]) and small.cuts_at("\n", "\n")
    )
    assert not small.cuts_at("\r", "\n") and not small.cuts_at("a", "\r")
    assert not small.cuts_at("。", "a") and not small.cuts_at(" ", "a")


def test_a_special_token_with_a_line_end_is_not_cut(model):
    tokenizer = PanguAlphaTokenizer(model, special={"<a\n>": 300}, split_special_tokens=False)
    assert not tokenizer.cuts_at("a", "\n")
    assert 300 in tokenizer.encode_piece("x<a\n>x")
    assert PanguAlphaTokenizer(model, special={"<a\n>": 300}).cuts_at("a", "\n")


def test_special_tokens_in_text(small, model):
    text = "他说<eot>你好<pad>\n"
    assert not {6, 9} & {*small.encode(text)}
    parsed = small.encode(text, split_special_tokens=False)
    between = [small.encode(part) for part in ("他说", "你好", "\n")]
    assert parsed == [*between[0], 9, *between[1], 6, *between[2]]
    given = PanguAlphaTokenizer(model, split_special_tokens=False)
    assert given.encode(text) == given.encode_piece(text).tolist() == parsed
    assert small.decode(parsed) == text
    assert small.decode(parsed, skip_special_tokens=True) == "他说你好\n"


def test_decoding_leaves_out_what_is_no_text(small):
    row = [1, *small.encode("你好"), 0, 9, 6, 6]
    assert small.decode(row) == f"你好{UNKNOWN}<eot><pad><pad>"
    assert small.decode(row, skip_special_tokens=True) == small.decode_within(row) == "你好"
    assert small.decode([*row[1:3], small.vocab_size, 10**9]) == small.decode(row[1:3])
    assert small.decode([row, []]) == small.batch_decode([row, []])
    assert small.convert_ids_to_tokens([0, 1, 9, 3, 4]) == [
        "<unk>",
        "<s>",
        "<eot>",
        LINE_END,
        BLANK,
    ]
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        small.decode([-1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches(model, side):
    tokenizer = PanguAlphaTokenizer(model)
    tokenizer.padding_side = tokenizer.truncation_side = side
    texts = ["你好", "今天天气不错。\n"]
    short, long = map(tokenizer.encode, texts)
    pads, ones = [6] * (len(long) - len(short)), [1] * len(short)
    zeros = [0] * len(pads)
    got = tokenizer(texts, padding=True, return_tensors="np")
    first = [*pads, *short] if side == "left" else [*short, *pads]
    mask = [*zeros, *ones] if side == "left" else [*ones, *zeros]
    assert got["input_ids"].tolist() == [first, long]
    assert got["attention_mask"].tolist() == [mask, [1] * len(long)]
    assert tokenizer(texts[1], max_length=2)["input_ids"] == (
        long[:2] if side == "right" else long[-2:]
    )
    assert tokenizer.build_inputs(short) == short and tokenizer.prefix_ids == []
    decoded = [shown.replace("<pad>", "") for shown in tokenizer.decode(got["input_ids"])]
    assert decoded == ["你好", "今天天气不错。\n"]


def test_saved_loaded_and_sent_to_another_process(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert (tmp_path / "vocab.model").read_bytes() == small.model
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["eos_token"]) == ("PanguAlphaTokenizer", "<eot>")
    for other in (AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(small))):
        assert isinstance(other, PanguAlphaTokenizer)
        assert other.special == small.special == SPECIAL
        assert [other.encode(text) for text in TEXTS] == [small.encode(text) for text in TEXTS]
        assert other.decode([0, 1, 9]) == small.decode([0, 1, 9])


@needs_vocabulary
def test_the_published_vocabulary_comes_back(published, tmp_path):
    published.save_pretrained(tmp_path)
    assert (tmp_path / "vocab.model").read_bytes() == (VOCABULARY / "vocab.model").read_bytes()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again.encode(case["text"]) for case in CASES] == [case["ids"] for case in CASES]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vocab.model", None),
        ("vocab.model", {"tokenizer_class": "GPTPanguTokenizer", "auto_map": {}}),
        ("vocab.model", {"tokenizer_class": "PanguAlphaTokenizer", "model_max_length": 1024}),
        ("tokenizer.model", {"tokenizer_class": "GPTPanguTokenizer"}),
    ],
)
def test_folders_of_others(small, model, tmp_path, name, config):
    (tmp_path / name).write_bytes(model)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, PanguAlphaTokenizer)
    assert tokenizer.special == SPECIAL and tokenizer.eos_token == "<eot>"
    assert tokenizer.encode(TEXTS[0]) == small.encode(TEXTS[0])


def test_a_folder_names_other_tokens(model, tmp_path):
    (tmp_path / "vocab.model").write_bytes(model)
    config = {"tokenizer_class": "PanguAlphaTokenizer", "eos_token": "<eod>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.special["<eot>"]) == (8, 6, 9)


def test_a_list_of_pieces_is_no_vocabulary(small, tmp_path):
    """What the original saved under this name, and could not load."""
    pieces = "\n".join(map(small.convert_ids_to_tokens, range(small.vocab_size)))
    (tmp_path / "vocab.model").write_text(pieces)
    with pytest.raises(TokenizerError, match=r"vocab\.model: is no sentencepiece model"):
        AutoTokenizer.from_pretrained(tmp_path, family="pangualpha")


def test_a_vocabulary_without_its_tokens():
    with pytest.raises(TokenizerError, match="'<eot>' has no id in the vocabulary"):
        PanguAlphaTokenizer(tiny.sentencepiece_model(user_defined_symbols=["<pad>"]))


def test_documents_in_several_processes_are_as_in_one(small, tmp_path):
    draw = random.Random(3)
    texts = ["你好，今天天气不错。", "The red fox\tsees 他说", "去北京看雪\r", "", " "]
    lines = "\n".join(draw.choice(texts) for _ in range(40_000))
    (tmp_path / "a.txt").write_bytes(lines.encode())
    small.save_pretrained(tmp_path / "own")
    words = ["text", "--input_glob", "a.txt", "--model_file", "own", "--max_length", "1000"]
    rows = []
    with chdir(tmp_path):
        for count in ("1", "2"):
            out = ["--output_file", f"{count}.mindrecord", "--num_process", count]
            assert run_verb("preprocess", SPEC, [*words, *out]) == 0
            data = RecordDataset(f"{count}.mindrecord")
            rows.append(data.read(range(len(data)))["input_ids"])
    assert np.array_equal(*rows)
    read = lines.replace("\r\n", "\n")  # as files are read
    whole = [*small.encode_piece(read).tolist(), small.eos_token_id]
    assert rows[0].reshape(-1)[: len(whole)].tolist() == whole
