"""`predict --infill` with a small model, from its files to the printed text."""

from __future__ import annotations

import ast

import pytest

from lm_core import AutoModel, AutoTokenizer, cli
from lm_core.testing import tiny
from lm_llama import SPEC
from lm_llama.tokenizer import LlamaTokenizer

TEXTS = ["the red <FILL_ME> sees two cups.", "  def f():\n<FILL_ME>\n  return 你"]
LENGTH = "--max_new_tokens=6"


def written(folder, infill):
    tokenizer = LlamaTokenizer(tiny.sentencepiece_model(infill=infill))
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, num_layers=1)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("code_llama"), infill=True)


def predict(folder, *words):
    return cli.run_verb("predict", SPEC, ["--load_checkpoint", str(folder), LENGTH, *words])


@pytest.fixture(scope="module")
def whole(folder):
    """The texts with what the model says, each alone and without a cache."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ends, filled = [tokenizer.eos_token_id, tokenizer.infill_end_id], []
    for text in TEXTS:
        prefix, suffix = text.split("<FILL_ME>")
        ids = tokenizer.build_infill_prompt(prefix, suffix)
        (row,) = model.generate(
            [ids], max_new_tokens=6, eos_token_id=ends, use_past=False, do_sample=False
        )
        filled.append(prefix + tokenizer.decode_infill(row[len(ids) :]) + suffix)
    assert all(
        len(new) > len(old) - len("<FILL_ME>") for new, old in zip(filled, TEXTS, strict=True)
    )
    return filled


def test_the_gap_is_filled(folder, whole, capsys):
    assert predict(folder, "--infill", "--do_sample=False", "--predict_data", *TEXTS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [ast.literal_eval(line) for line in lines] == [
        [{"text_generation_text": [text]}] for text in whole
    ]


def test_it_is_filled_while_one_looks(folder, whole, capsys):
    words = ("--infill", "--stream", "--do_sample=False", "--predict_data", *TEXTS)
    assert predict(folder, *words) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in whole)


def test_a_model_that_cannot(tmp_path, capsys):
    written(tmp_path, infill=False)
    assert predict(tmp_path, "--infill", "--predict_data", TEXTS[0]) == 2
    shown = capsys.readouterr()
    assert (
        "infill: this vocabulary of 460 has no tokens for infilling; must be that of" in shown.err
    )
    assert "Traceback" not in shown.err
    assert not shown.out
