"""`chat` in Baichuan 2's form, from the files of a small model to the printed answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_baichuan2 import SPEC
from lm_baichuan2.tokenizer import ASSISTANT, USER
from lm_core import AutoModel, cli, pipeline
from lm_core.cli import main
from lm_core.generation.chat import Answerer, chat_settings
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.tokenizer.messages import Conversation

QUESTIONS = ["你好", f"  And {ASSISTANT} two </s> cups?{USER} "]
LENGTH = ["--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """The table has rows for more ids than the tokenizer."""
    folder = tmp_path_factory.mktemp("baichuan2_chat")
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size + 30, num_layers=1, seq_length=256)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModel.from_pretrained(folder)


def spelled_out(model, tokenizer, **settings):
    """Each round generated without a cache, from ids that are put together here."""
    before, found = tokenizer.encode("Be brief."), []
    for question in map(str.strip, QUESTIONS):
        ids = [*before, tokenizer.user_token_id, *tokenizer.encode_said(question)]
        ids.append(tokenizer.assistant_token_id)
        (row,) = model.generate([ids], do_sample=False, use_past=False, **settings)
        found.append(tokenizer.decode(row[len(ids) :], skip_special_tokens=True).strip())
        before = [*ids, *tokenizer.encode_said(found[-1])]
    return found


@pytest.fixture(scope="module")
def answers(model, tokenizer):
    return spelled_out(model, tokenizer, max_new_tokens=12)


def command(*words, lines):
    return subprocess.run(
        [sys.executable, "-m", "lm_baichuan2.chat", *map(str, words), "--do_sample=False"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(folder, answers):
    words = ("--load_checkpoint", folder, "--system", "Be brief.", *LENGTH)
    done = command(*words, lines=QUESTIONS)
    assert done.stdout == "".join(f"{answer}\n" for answer in answers), done.stderr
    assert done.returncode == 0 and len(set(answers)) == 2


def talked(monkeypatch, tmp_path, *words):
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in QUESTIONS), encoding="utf-8")
    with (tmp_path / "lines").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        words = ["--do_sample=False", "--system=Be brief.", *map(str, words)]
        return cli.run_verb("chat", SPEC, words)


def test_as_the_card_says_it(folder, model, answers, tmp_path, monkeypatch, capsys):
    """A run file of the card's words, a vocabulary file, one process."""
    vocabulary = tmp_path / "vocabulary" / "tokenizer.model"
    vocabulary.parent.mkdir()
    vocabulary.write_bytes((folder / "tokenizer.model").read_bytes())
    sizes = f"preset: baichuan2_tiny, vocab_size: {model.config.vocab_size}, num_layers: 1"
    (tmp_path / "run.yaml").write_text(
        "trainer: {type: CausalLanguageModelingTrainer, model_name: baichuan2_7b}\n"
        f"model: {{model_config: {{type: LlamaConfig, {sizes}, seq_length: 256, use_past: False}}, "
        "arch: {type: Baichuan7BV2ForCausalLM}}\n"
        "processor: {type: LlamaProcessor, tokenizer: {type: Baichuan2Tokenizer, unk_token: <unk>}}"
    )
    words = ["--config", tmp_path / "run.yaml", "--use_parallel", "False", *LENGTH]
    words += ["--load_checkpoint", folder, "--auto_trans_ckpt", "False"]
    assert talked(monkeypatch, tmp_path, *words, "--vocab_file", vocabulary) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_an_adapter(folder, tokenizer, tmp_path, monkeypatch, capsys):
    """`--load_adapter`: what is said is that of the adapted model."""
    base = AutoModel.from_pretrained(folder)
    sizes = {"vocab_size": base.config.vocab_size, "num_layers": 1, "seq_length": 256}
    adapted = adapted_model(SPEC, target_modules=".*wq|.*wk|.*wv", **sizes)
    named = adapted.named_parameters()
    for name, parameter in base.named_parameters().items():
        named[name].set_data(parameter)
    adapted.save_pretrained(tmp_path / "adapted")
    peft = ["--input", str(tmp_path / "adapted"), "--output", str(tmp_path / "peft")]
    assert main(["convert", "baichuan2", *peft, "--format", "peft"]) == 0
    expected = spelled_out(adapted, tokenizer, max_new_tokens=12)
    capsys.readouterr()
    words = ("--load_checkpoint", folder, "--load_adapter", tmp_path / "peft", *LENGTH)
    assert talked(monkeypatch, tmp_path, *words) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)
    assert expected != spelled_out(base, tokenizer, max_new_tokens=12)


def test_messages_in_python(model, tokenizer, answers):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    run = pipeline("text_generation", model, tokenizer, max_new_tokens=12, do_sample=False)
    assert run(messages) == [{"text_generation_text": [answers[0]]}]


def test_a_text_is_continued_as_it_is_written(model, tokenizer):
    """The prompts of the card spell the tokens of the roles; the result shows them."""
    run = pipeline("text_generation", model, tokenizer, max_new_tokens=12, do_sample=False)
    prompt = f"{USER}你好{ASSISTANT}"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}])
    assert tokenizer(prompt)["input_ids"] == ids
    (row,) = model.generate(ids, max_new_tokens=12, do_sample=False)
    shown = run(prompt)[0]["text_generation_text"][0]
    assert shown == tokenizer.decode(row, skip_special_tokens=True)
    assert shown.startswith(prompt)


@pytest.mark.parametrize(
    ("of_run", "settings"),
    [
        ({}, {}),
        ({}, {"max_new_tokens": 256}),
        ({}, {"max_length": 256}),
        ({"max_decode_length": 256}, {}),
        ({"max_decode_length": 256}, {"max_new_tokens": 256}),
    ],
)
def test_what_was_said_is_remembered(model, tokenizer, of_run, settings):
    """Also where the answer may be as long as the context: no setting leaves it no room."""
    config = model.config.copy(of_run)
    answerer = Answerer(model, tokenizer, chat_settings(config, **settings))
    rounds = [("the red fox", "two blue cups"), ("a", "b")]
    ids, skipped = answerer.prompt(Conversation("", rounds, "who?"))
    asked = Conversation("", rounds, "who?").messages()
    assert (ids, skipped) == (tokenizer.apply_chat_template(asked), 0)
    ids, skipped = answerer.prompt(Conversation("Be brief.", rounds * 20, "who?"))
    assert 0 < skipped < 40 and len(ids) >= 100
    assert tokenizer.decode(ids).startswith(f"Be brief.{USER}")


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
