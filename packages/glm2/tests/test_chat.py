"""`chat` in ChatGLM2's rounds, from the files of a small model to the printed answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_core import AutoModel, AutoTokenizer, cli, pipeline
from lm_core.generation.chat import Answerer, chat_settings
from lm_core.testing import tiny
from lm_core.tokenizer.messages import Conversation
from lm_glm2 import SPEC
from lm_glm2.tokenizer import ChatGlm2Tokenizer

QUESTIONS = ["你好", "  sop, [gMASK] and </s> two cups? "]
LENGTH = ["--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The table has rows for more ids than the tokenizer, as the published one."""
    folder = tmp_path_factory.mktemp("glm2_chat")
    tokenizer = ChatGlm2Tokenizer(tiny.sentencepiece_model())
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size + 230, num_layers=1, seq_length=256)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def answers(model, tokenizer):
    """Each round generated without a cache, from a prompt that is spelled out here."""
    before, found = "Be brief.\n\n", []
    for number, question in enumerate(map(str.strip, QUESTIONS), 1):
        before += f"[Round {number}]\n\n问：{question}\n\n答："
        ids = tokenizer.encode(before)
        (row,) = model.generate([ids], max_new_tokens=12, do_sample=False, use_past=False)
        found.append(tokenizer.decode(row[len(ids) :]).strip())
        before += f"{found[-1]}\n\n"
    return found


def command(*words, lines):
    return subprocess.run(
        [sys.executable, "-m", "lm_glm2.chat", *map(str, words), *LENGTH, "--do_sample=False"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(folder, answers):
    done = command("--load_checkpoint", folder, "--system", "Be brief.", lines=QUESTIONS)
    assert done.stdout == "".join(f"{answer}\n" for answer in answers), done.stderr
    assert done.returncode == 0 and len(set(answers)) == 2


def test_a_vocabulary_that_does_not_say_whose_it_is(
    folder, model, answers, tmp_path, monkeypatch, capsys
):
    """As the card names it: a file alone, and special tokens that the vocabulary does not have."""
    path = tmp_path / "vocabulary" / "tokenizer.model"
    path.parent.mkdir()
    vocab_size = model.config.vocab_size
    path.write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "run.yaml").write_text(
        "model: {model_config: {preset: glm2_tiny, num_layers: 1, seq_length: 256, "
        f"padded_vocab_size: {vocab_size}}}}}\n"
        f"processor: {{type: GLMProcessor, tokenizer: {{type: ChatGLM2Tokenizer, vocab_file: {path}"
        ", bos_token: <sop>, eos_token: <eop>, end_token: </s>, pad_token: <pad>}}\n"
    )
    (tmp_path / "lines").write_text(QUESTIONS[0] + "\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--load_checkpoint", str(folder), *LENGTH]
    with (tmp_path / "lines").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.run_verb("chat", SPEC, [*words, "--do_sample=False", "--system=Be brief."]) == 0
    assert capsys.readouterr().out == f"{answers[0]}\n"
    for one in (folder, model):
        run = pipeline("text_generation", one, path.parent, max_new_tokens=1, do_sample=False)
        assert isinstance(run.tokenizer, ChatGlm2Tokenizer)


def test_messages_in_python(model, tokenizer, answers):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    run = pipeline("text_generation", model, tokenizer, max_new_tokens=12, do_sample=False)
    assert run(messages) == [{"text_generation_text": [answers[0]]}]


def test_a_text_is_continued_and_not_made_a_question(model, tokenizer):
    run = pipeline("text_generation", model, tokenizer, max_new_tokens=12, do_sample=False)
    for text in ("你好", tokenizer.build_prompt("你好")):
        ids = tokenizer(text)["input_ids"]
        (row,) = model.generate(ids, max_new_tokens=12, do_sample=False)
        assert row[: len(ids)].tolist() == ids
        assert run(text) == [{"text_generation_text": tokenizer.decode([row])}]
        assert tokenizer.decode(row).startswith(text)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(folder, model, side):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    texts, settings = ["the red fox", "你好", ""], {"max_new_tokens": 4, "do_sample": False}
    batch = tokenizer(texts, padding=True, return_tensors="np")
    assert (batch["attention_mask"] == 0).any()
    rows = model.generate(**batch, **settings)
    alone = [model.generate(tokenizer(text)["input_ids"], **settings)[0] for text in texts]
    assert [row.tolist() for row in rows] == [row.tolist() for row in alone]


def test_an_answer_ends_at_its_token(model, tokenizer):
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}])
    (row,) = model.generate([ids], max_new_tokens=12, do_sample=False, eos_token_id=[])
    new = row[len(ids) :].tolist()
    last = next(place for place in range(3, len(new)) if new[place] not in new[:place])
    settings = chat_settings(
        model.config, max_new_tokens=12, do_sample=False, eos_token_id=new[last]
    )
    seen = []

    class Streamer:
        def put(self, tokens):
            seen.extend(tokens)

        def end(self):
            seen.append(-1)

    Answerer(model, tokenizer, settings).generate(ids, Streamer())
    assert seen[len(ids) :] == [*new[: last + 1], -1]


def test_the_oldest_rounds_go_and_the_others_count_from_one(model, tokenizer):
    rounds = [(f"the red fox {n}", "two blue cups") for n in range(12)]
    answerer = Answerer(model, tokenizer, chat_settings(model.config, max_new_tokens=12))
    for system in ("", "Be brief."):
        ids, skipped = answerer.prompt(Conversation(system, rounds, "你好"))
        assert 0 < skipped < len(rounds) and len(ids) <= 256 - 12
        expected = tokenizer.build_prompt("你好", rounds[skipped:])
        assert tokenizer.decode(ids) == "\n\n".join([*([system] if system else []), expected])
        whole = tokenizer.build_prompt("你好", rounds[skipped - 1 :])
        assert len(tokenizer.encode(whole)) + len(tokenizer.encode(system, False)) > 256 - 12 - 3
