"""ChatGLM2's tokenizer against ids of the published program's procedure, and its folder.

Without the published vocabulary a small one stands in: BPE with bytes and no normalization as
that is, with pieces of spaces alone and Chinese words.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from contextlib import chdir
from pathlib import Path

import pytest
from outside import DATA
from sentencepiece import SentencePieceProcessor

from lm_core import AutoTokenizer, log
from lm_core.cli import run_verb
from lm_core.config.checks import no_effect
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import TokenizerError
from lm_core.generation.streamer import TextPieces
from lm_core.spec import read_run
from lm_core.testing import tiny
from lm_core.tokenizer.sentencepiece import SPACE
from lm_core.tokenizer.sentencepiece_model import with_pieces
from lm_glm2 import SPEC
from lm_glm2.tokenizer import BEHIND, FIXED, ChatGlm2Tokenizer

VOCABULARY = DATA / "chatglm2_6b"
CASES = json.loads((Path(__file__).parent / "tokenizer_vectors.json").read_text())["cases"]
PIECES = 64789
needs_vocabulary = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"{VOCABULARY} is not here")
TEXTS = [
    "", " ", "  two  ", "\n\n", "\t", "你好", "晚上睡不着应该怎么办", "the red fox\0", "ＡＢ１，",
    "\U0001f600", "[gMASK]",
    "sop", "the sop fox", "eop[MASK][sMASK]", "<s>", "</s>", "<unk>", "<pad>", "<sop>",
]  # fmt: skip
NAMED = {"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def published():
    return AutoTokenizer.from_pretrained(VOCABULARY)


@pytest.fixture(scope="module")
def library():
    return SentencePieceProcessor(model_file=str(VOCABULARY / "tokenizer.model"))


@pytest.fixture(scope="module")
def model():
    words = ("你好", "晚上", "睡不着", "应该", "怎么", "怎么办", "睡不")
    return with_pieces(
        tiny.sentencepiece_model(),
        [(SPACE * 2, -900.0), *((word, -901.0 - n) for n, word in enumerate(words))],
    )


@pytest.fixture(scope="module")
def small(model):
    return ChatGlm2Tokenizer(model)


@pytest.fixture
def folder(tmp_path, model):
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    return tmp_path


def shown_by_the_original(library, ids):
    """What its `convert_id_to_token` and `convert_tokens_to_string` give."""
    beyond = library.get_piece_size()
    dropped = {library.bos_id(), library.eos_id(), library.unk_id()}
    return library.DecodePieces(
        ["" if i >= beyond or i in dropped else library.IdToPiece(i) for i in ids]
    )


def streamed(tokenizer, ids):
    pieces = TextPieces(tokenizer)
    return "".join(pieces.push([index]) for index in ids) + pieces.flush()


@pytest.mark.parity
@needs_vocabulary
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ids_are_the_original_ones(published, library, case):
    text, ids = CASES[case]["text"], CASES[case]["ids"]
    assert published.encode(text) == published(text)["input_ids"] == ids
    assert ids == [PIECES + 1, PIECES + 3, *library.encode(text)]
    plain = text.replace(SPACE, " ")  # which is how the vocabulary spells a space
    assert published.decode(ids) == shown_by_the_original(library, ids) == plain
    assert streamed(published, ids) == plain


@needs_vocabulary
def test_the_numbers_of_the_vocabulary(published):
    assert isinstance(published, ChatGlm2Tokenizer)
    assert published.vocab_size == len(published) == 64794 < SPEC.presets["glm2_6b"].vocab_size
    assert [published.convert_tokens_to_ids(token) for token in BEHIND] == list(range(64789, 64794))
    assert (published.bos_token_id, published.eos_token_id, published.pad_token_id) == (1, 2, 0)
    assert published.unk_token_id == 0
    assert published.all_special_ids == [0, 1, 2, *range(64789, 64794)]
    assert published.encode("你好") == [64790, 64792, 36474, 54591]
    question = "晚上睡不着应该怎么办"
    assert published.encode(question) == [64790, 64792, 30910, 32820, 54266, 31876, 35153]
    config = SPEC.presets["glm2_6b"]
    assert (config.eos_token_id, config.pad_token_id) == (2, 0)


@needs_vocabulary
def test_every_text_of_adgen_comes_back(published, library):
    """The vocabulary normalizes nothing, has bytes for every character, and keeps runs of spaces.

    So one kind of difference is possible: U+2581, which spells a space, comes back as one.
    """
    path = DATA / "adgen" / "dev.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    kinds: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        for text in map(json.loads(line).__getitem__, ("content", "summary")):
            ids = published.encode(text)
            assert ids[2:] == library.encode(text)
            whole = published.decode(ids)
            assert shown_by_the_original(library, ids) == whole == streamed(published, ids)
            if whole != text:
                kinds[SPACE if whole == text.replace(SPACE, " ") else text] += 1
    assert kinds == Counter()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_its_pieces_behind_two_tokens(small, model, text):
    library = SentencePieceProcessor(model_proto=model)
    size = library.get_piece_size()
    ids = small.encode(text)
    assert ids == [size + 1, size + 3, *library.encode(text)]
    assert small.encode(text, add_special_tokens=False) == ids[2:]
    assert set(ids[2:]).isdisjoint(small.all_special_ids)
    assert small.decode(ids) == text == streamed(small, ids)
    assert small.decode(ids, skip_special_tokens=False) == f"[gMASK]sop{text}"


def test_special_tokens_in_text_are_parsed_if_asked(small):
    size = small.vocab_size - len(BEHIND)
    ids = small.encode("[gMASK]sop你好</s>", split_special_tokens=False)
    assert ids[2:4] == [size + 1, size + 3] and ids[-1] == 2
    assert small.decode(ids) == "你好"


def test_decoding_leaves_out_what_is_no_text(small):
    row = [0, 0, *small.encode("你好"), small.eos_token_id, 0]
    beyond = [small.vocab_size, 65023, 10**9]
    assert small.decode([*row, *beyond]) == small.batch_decode([row])[0] == "你好"
    assert small.decode([row, beyond, []]) == ["你好", "", ""]
    assert small.decode(beyond, skip_special_tokens=False) == ""
    shown = small.decode(row, skip_special_tokens=False)
    assert shown == "<unk><unk>[gMASK]sop你好</s><unk>"
    assert streamed(small, [*row, *beyond]) == "你好"


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(model, side):
    tokenizer = ChatGlm2Tokenizer(model)
    assert tokenizer.padding_side == "right"
    tokenizer.padding_side = side
    short, long = tokenizer.encode("你好"), tokenizer.encode("the red fox")
    got = tokenizer(["你好", "the red fox"], padding=True)
    missing = len(long) - len(short)
    pads, ones = [0] * missing, [1] * len(short)
    first = [*pads, *short] if side == "left" else [*short, *pads]
    mask = [*pads, *ones] if side == "left" else [*ones, *pads]
    assert got["input_ids"] == [first, long]
    assert got["attention_mask"] == [mask, [1] * len(long)]
    assert tokenizer.decode(got["input_ids"]) == ["你好", "the red fox"]


def test_truncation_keeps_the_first_two(small):
    whole = small.encode("the red fox sees")
    assert small("the red fox sees", max_length=4)["input_ids"] == whole[:4]
    with pytest.raises(TokenizerError, match="max_length: 1 has no room for the tokens around"):
        small("the", max_length=1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        # As it was published.
        {
            "name_or_path": "THUDM/chatglm2-6b", "remove_space": False, "do_lower_case": False,
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        },
        # As other versions of transformers save it.
        {
            "added_tokens_decoder": {}, "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {}, "model_max_length": 1000000000000000019884624838656,
            "padding_side": "left", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>",
            "chat_template": "{{ messages }}", "tokenizer_file": None, "use_fast": False,
        },
        NAMED | {"end_token": "</s>", "mask_token": "[MASK]", "gmask_token": "[gMASK]"},
        {"eos_token": {"content": "eop", "special": True}, "bos_token": "never seen"},
        {"add_bos_token": True, "add_eos_token": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["ChatGLMTokenizer", "ChatGLM2Tokenizer", None])
def test_whatever_a_folder_names_the_ids_stay(folder, small, config, kind):
    values = config if kind is None else {**config, "tokenizer_class": kind}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = AutoTokenizer.from_pretrained(folder, family="glm2_6b")
    assert isinstance(tokenizer, ChatGlm2Tokenizer)
    assert vars(tokenizer).keys() == {*vars(small)} - {"_first", "_within", "_implied", "_spelt"}
    assert tokenizer.special == small.special
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("</s>", 0)
    assert tokenizer.encode("sop 你好</s>") == small.encode("sop 你好</s>")


def test_names_without_effect_are_said_once(folder, model, caplog, monkeypatch):
    monkeypatch.setattr(log, "_noticed", set())
    monkeypatch.setattr(logging.getLogger("lm_core"), "propagate", True)
    config = NAMED | {"add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, "lm_core"):
        for _ in range(2):
            ChatGlm2Tokenizer.from_pretrained(folder)
        ChatGlm2Tokenizer(model, eos_token="</s>", pad_token=None)
    (said,) = caplog.messages
    assert said == (
        "tokenizer: without effect: bos_token <sop>, eos_token <eop>, pad_token <pad>, "
        "add_bos_token True; ChatGLM2 begins texts with [gMASK] sop and has <s>, </s>, <unk> from "
        "its vocabulary"
    )


def test_added_tokens(folder, small):
    size = small.vocab_size
    added = {"<|user|>": size + 1, "sop": 7, "<sop>": small.special["sop"], "<s>": 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.special == {**small.special, "<|user|>": size + 1}
    assert tokenizer.vocab_size == size + 2
    tokenizer.save_pretrained(folder)
    (folder / "added_tokens.json").unlink()
    assert AutoTokenizer.from_pretrained(folder).special == tokenizer.special


def test_saved_loaded_and_sent_to_another_process(small, tmp_path):
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "ChatGLMTokenizer"
    # The published program stops at names that it sets itself, and would find "sop" in texts.
    assert not {*FIXED} & {*config} and config["added_tokens_decoder"] == {}
    for other in (AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(small))):
        assert isinstance(other, ChatGlm2Tokenizer)
        assert (other.special, other.pad_token) == (small.special, "<unk>")
        assert [other.encode(text) for text in TEXTS] == [small.encode(text) for text in TEXTS]
        assert other.padding_side == small.padding_side


@needs_vocabulary
def test_the_published_folder_comes_back(published, tmp_path):
    published.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == published.model
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, ChatGlm2Tokenizer)
    assert [again.encode(case["text"]) for case in CASES] == [case["ids"] for case in CASES]


def test_a_run_may_name_tokens_as_the_card_does():
    names = NAMED | {"end_token": "</s>", "mask_token": "[MASK]", "gmask_token": "[gMASK]"}
    tokenizer = {**names, "type": "ChatGLM2Tokenizer"}
    run = read_run(
        {
            "model": {"model_config": {"preset": "glm2_tiny"}},
            "processor": {"return_tensors": "ms", "tokenizer": tokenizer, "type": "GLMProcessor"},
        }
    )
    assert no_effect(run) == sorted(f"processor.tokenizer.{name}" for name in names)


def test_documents_begin_as_texts_do(small, folder, tmp_path):
    (tmp_path / "a.txt").write_text("the red fox 你好")
    words = ["--input_glob", "a.txt", "--model_file", "tokenizer.model", "--max_length", "20"]
    with chdir(tmp_path):
        words = ["text", *words, "--output_file", "a.mindrecord"]
        assert run_verb("preprocess", SPEC, words) == 0
        (row,) = RecordDataset("a.mindrecord").read([0])["input_ids"].tolist()
    whole = [*small.encode("the red fox 你好"), small.eos_token_id]
    assert row[: len(whole)] == whole
