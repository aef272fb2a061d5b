"""Records and a tokenizer that are made here."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece
from outside import DATA

from lm_core.data.mindrecord import RecordWriter
from lm_core.tokenizer.base import Tokenizer
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe

END = "<|endoftext|>"


@pytest.fixture(scope="session")
def tokenizer():
    text = "The lobster , the water and the old cook . It 's cold ; isn 't it ? @-@ \n" * 20
    return ByteLevelBpe(*train_bpe([text], 300), eos_token=END, pad_token=END)


def write_records(path, rows, length=5, splits=1, start=0, columns=("input_ids",)):
    """Record k holds the id start + k everywhere."""
    with RecordWriter(path, columns, splits) as writer:
        for k in range(start, start + rows):
            writer.write({name: np.full(length, k, np.int32) for name in columns})
    return path


@pytest.fixture
def records():
    return write_records


class Pieces(Tokenizer):
    """Sentencepiece as Llama uses it: a space is put before every text."""

    def __init__(self, model):
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        super().__init__({"<unk>": 0, "<s>": 1, "</s>": 2}, add_bos_token=True, **names)

    @property
    def vocab_size(self):
        return self.model.get_piece_size()

    def _encode(self, text):
        return self.model.encode(text)

    def _token(self, index):
        return self.model.id_to_piece(index)


@pytest.fixture(scope="session")
def pieces():
    """A vocabulary of sentencepiece with all bytes, made here."""
    text = "USER: Who are you? ASSISTANT: I am a lobster, a language model of the cold water."
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return Pieces(model.getvalue())


@pytest.fixture(scope="session")
def llama_pieces():
    """The published vocabulary of Llama."""
    path = DATA / "llama" / "tokenizer.model"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return Pieces(path.read_bytes())
