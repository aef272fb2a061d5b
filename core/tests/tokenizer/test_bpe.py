"""Byte-level BPE against the algorithm written out by hand, and its promises."""

from __future__ import annotations

import pickle
import random
import time
from itertools import pairwise

import pytest
import regex

from lm_core.errors import TokenizerError
from lm_core.tokenizer import bpe as module
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe
from lm_core.tokenizer.byte_level import byte_symbols

END = "<|endoftext|>"
# Without the possessive repeats of ours.
ORIGINAL = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
POOLS = (
    "etaoin shrdlu",
    "ab'stremvldA1 \n\t.,",
    "  \n\r\t x\u00a0\u2003\u3000\u200b\u2028\x85\x1c\x1f",
    "\u4f60\u597d\u5929 \U0001f600\u00e9\u0301\u200d",
    "lobster water the 'd 's",
)


def merge_by_hand(word, ranks):
    """The loop of the first program: the best pair of the word, everywhere, until there is none."""
    parts = list(word)
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda pair: ranks.get(pair, float("inf")))
        if pair not in ranks:
            break
        merged, index = [], 0
        while index < len(parts):
            if tuple(parts[index : index + 2]) == pair:
                merged.append("".join(pair))
                index += 2
            else:
                merged.append(parts[index])
                index += 1
        parts = merged
    return parts


def encode_by_hand(text, vocab, merges):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for word in ORIGINAL.findall(text):
        symbols = "".join(byte_symbols()[byte] for byte in word.encode())
        ids += [vocab[part] for part in merge_by_hand(symbols, ranks)]
    return ids


def random_text(rng, length):
    if rng.random() < 0.3:
        points = (rng.randrange(0x110000) for _ in range(length))
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    pool = rng.choice(POOLS)
    return "".join(rng.choice(pool) for _ in range(length))


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_those_of_the_algorithm_by_hand(bpe, learnt, seed):
    rng = random.Random(seed)
    for _ in range(300):
        text = random_text(rng, rng.randrange(60))
        assert bpe.encode(text) == encode_by_hand(text, *learnt), repr(text)


@pytest.mark.parametrize("letters", ["a", "th", "water", "lobster ", "the\u4f60", "=-"])
def test_long_words_are_merged_like_short_ones(learnt, letters, monkeypatch):
    """The two ways of merging agree on both sides of the length at which they change over."""
    rng = random.Random(len(letters))
    words = ["".join(rng.choice(letters.strip()) for _ in range(n)) for n in (199, 200, 201, 1500)]
    results = []
    for limit in (0, 10**9):
        monkeypatch.setattr(module, "_LONG_WORD", limit)
        results.append([ByteLevelBpe(*learnt).encode(word) for word in words])
    assert results[0] == results[1] == [encode_by_hand(word, *learnt) for word in words]


@pytest.mark.parametrize("seed", range(3))
def test_merging_agrees_for_random_merges(seed):
    """Merges that share parts in every way: (a, a), (aa, a), (a, aa), (ab, a), ..."""
    rng = random.Random(seed)
    tokens, merges = list("abc"), []
    while len(merges) < 40:
        pair = rng.choice(tokens), rng.choice(tokens)
        if "".join(pair) not in tokens:
            merges.append(pair)
            tokens.append("".join(pair))
    symbols = list(byte_symbols()) + tokens[3:]
    vocab = {token: index for index, token in enumerate(symbols)}
    tokenizer = ByteLevelBpe(vocab, merges)
    for _ in range(200):
        word = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 400)))
        assert tokenizer.encode(word) == encode_by_hand(word, vocab, merges)


@pytest.mark.parametrize("seed", range(4))
def test_any_text_comes_back(bpe, seed):
    rng = random.Random(100 + seed)
    for _ in range(200):
        text = random_text(rng, rng.randrange(80)).replace(END, "")
        assert bpe.decode(bpe.encode(text)) == text


def test_every_code_point_comes_back(bpe):
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 50_000):
        text = " ".join(map(chr, points[start : start + 50_000]))
        assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("\ud83d\ude00", "\U0001f600"),  # a pair is one character
        ("a\ud800b", "a\ufffdb"),
        ("\udfff\ud800", "\ufffd\ufffd"),
        ("\ud800\U0001f600\udc00", "\ufffd\U0001f600\ufffd"),
        ("\udc80" * 3, "\ufffd" * 3),
    ],
)
def test_surrogates_are_joined_or_replaced(bpe, text, meaning):
    assert bpe.encode(text) == bpe.encode(meaning)
    assert bpe.decode(bpe.encode(text)) == meaning


@pytest.mark.parametrize(
    "line",
    [
        "a" * 1_000_000,
        "".join(random.Random(1).choices("etaoinshrdlu", k=1_000_000)),
        " " * 1_000_000 + "x",
        "\n" * 1_000_000,
        "-" * 1_000_000,
        "\u4f60" * 333_333,
        "\x00\x01\x1f\x7f" * 250_000,
        "ab " * 333_333,
    ],
    ids=["one-letter", "letters", "spaces", "line-breaks", "dashes", "chinese", "control", "words"],
)
def test_a_megabyte_in_a_line(bpe, line):
    start = time.perf_counter()
    ids = bpe.encode(line)
    seconds = time.perf_counter() - start
    assert bpe.decode(ids) == line
    # Quadratic merging would take hours; the slowest of these takes 4 s.
    assert seconds < 60


def test_long_words_take_linear_time(bpe):
    def seconds(n):
        word = "".join(random.Random(2).choices("etaoinshrdlu", k=n))
        start = time.perf_counter()
        bpe.encode(word)
        return time.perf_counter() - start

    seconds(1000)
    small = min(seconds(20_000) for _ in range(3))
    assert seconds(320_000) < 16 * small * 5


def test_special_tokens_in_text(bpe):
    end = bpe.eos_token_id
    ids = bpe.encode(f"water{END} {END}{END}")
    assert ids == [*bpe.encode("water"), end, *bpe.encode(" "), end, end]
    assert bpe.decode(ids) == f"water{END} {END}{END}"
    assert bpe.decode(ids, skip_special_tokens=True) == "water "
    split = bpe.encode(END, split_special_tokens=True)
    assert end not in split
    assert len(split) > 1
    assert bpe.decode(split, skip_special_tokens=True) == END


def test_the_longest_special_token_is_found(learnt):
    vocab = {**learnt.vocab, "<|end|>": 500, "<|end|>x": 501}
    special = {"<|end|>": 500, "<|end|>x": 501}
    tokenizer = ByteLevelBpe(vocab, learnt.merges, special=special)
    assert tokenizer.encode("<|end|>x<|end|>y")[:2] == [501, 500]
    assert tokenizer.vocab_size == len(tokenizer) == 502


def test_prefix_space(learnt):
    plain, spaced = (ByteLevelBpe(*learnt, eos_token=END, add_prefix_space=on) for on in (0, 1))
    assert spaced.encode("water") == plain.encode(" water")
    assert spaced.encode(" water") == plain.encode(" water")
    assert spaced.encode("\nwater") == plain.encode(" \nwater")
    assert spaced.encode("") == []
    assert spaced.encode(f"a{END}b") == plain.encode(f" a{END} b")


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_add_up_where_a_cut_is_allowed(learnt, seed, prefix):
    tokenizer = ByteLevelBpe(*learnt, eos_token=END, add_prefix_space=prefix)
    rng = random.Random(seed)
    cuts = 0
    for _ in range(400):
        text = random_text(rng, rng.randrange(2, 30)) + rng.choice(["", END, " x", "\n\n a"])
        whole = tokenizer.encode(text)
        for at in range(1, len(text)):
            if tokenizer.cuts_at(text[:at], text[at:]):
                cuts += 1
                assert tokenizer.encode(text[:at]) + tokenizer.encode(text[at:]) == whole
    assert cuts > 300


def test_no_cut_is_promised_where_words_reach_over(bpe):
    for left, right in [("wat", "er"), (" ", "a"), (" ", " "), ("\n", "\n"), ("1", "2"), ("", "a")]:
        assert not bpe.cuts_at(left, right)
    assert bpe.cuts_at("a", " ")
    assert bpe.cuts_at("a", "\n")


def test_no_cut_with_a_special_token_that_holds_space(learnt):
    vocab = {**learnt.vocab, "<the end>": 400}
    tokenizer = ByteLevelBpe(vocab, learnt.merges, special={"<the end>": 400})
    assert not tokenizer.cuts_at("<the", " end>")


def test_another_process_gets_an_equal_tokenizer(learnt):
    tokenizer = ByteLevelBpe(*learnt, eos_token=END, add_prefix_space=True)
    tokenizer.encode("some words are known now")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert not copy._words
    assert copy.encode(f"the water{END}") == tokenizer.encode(f"the water{END}")
    assert copy.decode(copy.encode("x")) == tokenizer.decode(tokenizer.encode("x"))


def test_the_memory_of_words_is_bounded(learnt, monkeypatch):
    monkeypatch.setattr(module, "_CACHED_WORDS", 100)
    tokenizer = ByteLevelBpe(*learnt)
    words = [f" w{index}" for index in range(1000)]
    fresh = [ByteLevelBpe(*learnt).encode(word) for word in words[:50]]
    for word in words:
        tokenizer.encode(word)
        assert len(tokenizer._words) <= 100
    assert [tokenizer.encode(word) for word in words[:50]] == fresh
    tokenizer.encode("x" * 5000)
    assert max(map(len, tokenizer._words)) < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab, merges: vocab.pop("!"), "lacks 1 of the 256 byte symbols, '!' first"),
        (lambda vocab, merges: merges.append(("q", "qqq")), "needs the token 'qqq'"),
        (lambda vocab, merges: vocab.update(new=0), "share the id 0"),
        (lambda vocab, merges: vocab.update(new=-1), "the id of 'new' is -1"),
        (lambda vocab, merges: vocab.update(new="1"), "the id of 'new' is '1'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(learnt, change, message):
    vocab, merges = dict(learnt.vocab), list(learnt.merges)
    change(vocab, merges)
    with pytest.raises(TokenizerError, match=regex.escape(message)) as caught:
        ByteLevelBpe(vocab, merges)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_training_is_deterministic_and_ignores_the_order():
    texts = ["the water was cold", "the lobster, the cook", "water the water " * 3, "aaaa aaa aa"]
    first = train_bpe(texts, 290)
    assert train_bpe(reversed(texts), 290) == first
    assert train_bpe(list(texts), 290) == first


def learn_by_hand(texts, merges):
    """Sennrich's loop: count every pair of every word anew for each merge."""
    ids = {symbol: index for index, symbol in enumerate(sorted(byte_symbols()))}
    words = [
        [byte_symbols()[byte] for byte in word.encode()]
        for text in texts
        for word in ORIGINAL.findall(text)
    ]
    learnt = []
    for _ in range(merges):
        counts = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        learnt.append(best)
        ids["".join(best)] = len(ids)
        words = [merge_by_hand(word, {best: 0}) for word in words]
    return learnt


def test_training_finds_the_merges_of_the_simple_algorithm():
    rng = random.Random(3)
    texts = ["".join(rng.choices("aab bc \u00e9", k=300)) for _ in range(4)]
    vocab, merges = train_bpe(texts, 256 + 60 + 1)
    assert merges == learn_by_hand(texts, 60)
    assert list(vocab)[:256] == sorted(byte_symbols())
    assert vocab[END] == 316


def test_training_stops_when_no_pair_repeats():
    vocab, merges = train_bpe(["abab cd"], 1000)
    assert merges == [("a", "b")]
    assert len(vocab) == 258


def test_training_needs_room_and_survives_odd_texts():
    with pytest.raises(TokenizerError, match="use at least 257"):
        train_bpe(["x"], 256)
    vocab, merges = train_bpe(["", "\ud800", "x" * 100_000, "\x00"], 300)
    tokenizer = ByteLevelBpe(vocab, merges)
    assert tokenizer.decode(tokenizer.encode("x" * 999)) == "x" * 999


@pytest.mark.slow
def test_training_on_megabytes_takes_seconds():
    rng = random.Random(4)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 10))) for _ in range(40_000)]
    text = " ".join(rng.choices(words, k=500_000))
    start = time.perf_counter()
    vocab, _ = train_bpe([text], 4096)
    assert len(vocab) == 4096
    assert time.perf_counter() - start < 60


def test_encoding_is_fast(bpe):
    """At least 100,000 tokens a second and core; the aim is 500,000 with a full vocabulary."""
    rng = random.Random(5)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(5000)]
    text = " ".join(rng.choices(words, k=200_000))
    start = time.perf_counter()
    count = len(bpe.encode_piece(text))
    assert count / (time.perf_counter() - start) > 100_000
