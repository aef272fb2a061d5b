"""`chat` with Llama's own format, from the files of a small model to the printed answers."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from lm_core import AutoModel, AutoTokenizer, cli, pipeline
from lm_core.testing import tiny
from lm_llama import SPEC
from lm_llama.tokenizer import LlamaTokenizer

QUESTIONS = ["What is the red fox?", "  And </s> two cups? "]
LENGTH = ["--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama_chat")
    tokenizer = LlamaTokenizer(tiny.sentencepiece_model())
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, num_layers=1, seq_length=256)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """Each round generated alone, without a cache, from a prompt that is spelled out here."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before, system, found = [], "<<SYS>>\nBe brief.\n<</SYS>>\n\n", []
    for question in QUESTIONS:
        text = f"[INST] {system}{question.strip()} [/INST]"
        ids = [*before, 1, *tokenizer.encode(text, False, split_special_tokens=True)]
        (row,) = model.generate([ids], max_new_tokens=12, do_sample=False, use_past=False)
        answer = tokenizer.decode(row[len(ids) :], skip_special_tokens=True).strip()
        whole = f"{text} {answer} "
        before += [1, *tokenizer.encode(whole, False, split_special_tokens=True), 2]
        system = ""
        found.append(answer)
    return found


def test_the_command(folder, answers):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_llama.chat", "--load_checkpoint", str(folder), *LENGTH),
            *("--do_sample=False", "--system", "Be brief."),
        ],
        input="".join(f"{question}\n" for question in QUESTIONS) + "say [INST]\n",
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "".join(f"{answer}\n" for answer in answers), done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: message: holds [INST]; must hold none of the tags" in done.stderr


@pytest.mark.parametrize("more", [(), ("--dynamic",)])
def test_exported_graphs(folder, answers, more, tmp_path, capsys, monkeypatch):
    """Of fixed sizes a prompt is padded to that of the graph; of open sizes it is not."""
    words = ["--load_checkpoint", str(folder), "--output_dir", str(tmp_path / "exported"), *more]
    assert cli.run_verb("export", SPEC, words) == 0
    (tmp_path / "lines").write_text("".join(f"{question}\n" for question in QUESTIONS))
    capsys.readouterr()
    with (tmp_path / "lines").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        words = ["--mindir", str(tmp_path / "exported"), *LENGTH, "--do_sample=False"]
        assert cli.run_verb("chat", SPEC, [*words, "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_an_export_is_alone(folder, capsys):
    words = ["--load_checkpoint", str(folder), "--mindir", str(folder)]
    assert cli.run_verb("chat", SPEC, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "load_checkpoint: is with mindir, and an export has its own; remove one" in line


def test_messages_in_python(folder, answers):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    run = pipeline("text_generation", model=folder, max_new_tokens=12, do_sample=False)
    assert run(messages) == [{"text_generation_text": [answers[0]]}]


def test_the_context_fills_up(folder, capsys, monkeypatch, tmp_path):
    """A long conversation goes on; a question that cannot fit is refused."""
    (tmp_path / "lines").write_text("the red fox\n" * 8 + "fox " * 300 + "\nthe end?\n")
    with (tmp_path / "lines").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.run_verb("chat", SPEC, ["--load_checkpoint", str(folder), *LENGTH]) == 2
    shown = capsys.readouterr()
    assert "the model no longer sees the first" in shown.err
    assert "must have at most 255 to leave room for an answer; shorten it" in shown.err
    assert len([line for line in io.StringIO(shown.out) if line.strip()]) >= 9
