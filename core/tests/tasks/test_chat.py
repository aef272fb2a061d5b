"""`chat` with a model and a tokenizer that stand in for real ones, and lines of a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core import AutoTokenizer, cli, job
from lm_core.config.model import ModelConfig
from lm_core.errors import GenerationError, TokenizerError
from lm_core.parallel.context import ParallelContext
from lm_core.spec import ModelSpec
from lm_core.tasks import keyboard
from lm_core.tasks.session import read_conversation

CONTEXT = 100


class Letters:
    """A character is its code, 3 ends; a message is a line with the first letter of its role."""

    def apply_chat_template(self, messages, add_generation_prompt=True):
        texts = [f"{message['role'][0]}:{message['content']}\n" for message in messages]
        if "#" in "".join(texts):
            raise TokenizerError("message: holds #; must not; leave it out")
        return [ord(character) for character in "".join(texts)]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(token) for token in ids if token != 3)


class Counter:
    """Answers with the number of questions that it sees; remembers how it was asked."""

    def __init__(self, config):
        self.config, self.context = config, ParallelContext.local()
        self.prompts, self.settings = [], []

    def generate(self, ids, settings, streamer, attention_mask):
        text = Letters().decode(ids[0])
        self.prompts.append(text)
        self.settings.append(settings)
        try:
            streamer.put(np.array(ids[0]))
            for token in f" {text.count('u:')} seen\x03":
                if "stop" in text.splitlines()[-1]:
                    # This process has threads that do not block signals.
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                streamer.put(np.array([ord(token)]))
        finally:
            streamer.end()


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "toy.yaml").write_text("model: {model_config: {preset: toy}}\n")
    sizes = {"vocab_size": 128, "hidden_size": 8, "num_layers": 1, "num_heads": 1}
    return ModelSpec(
        name="toy", config_class=ModelConfig,
        presets={"toy": ModelConfig(**sizes, seq_length=CONTEXT)},
        build=lambda config, context: None, hf_types=(), tables={},
        tokenizer=lambda folder: Letters(), configs=tmp_path, chat=True,
    )  # fmt: skip


@pytest.fixture
def chat(spec, monkeypatch, capsys, tmp_path):
    """`chat(lines, *flags)` gives status, stdout, stderr and the model."""
    models = []

    def load(run, path, context, adapter=None):
        models.append(Counter(run.model.config.copy(checkpoint_name_or_path=path)))
        return models[-1]

    monkeypatch.setattr(job, "join", lambda run: ParallelContext.local())
    monkeypatch.setattr(job, "load", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Letters())
    monkeypatch.chdir(tmp_path)

    def run(lines: str | bytes, *flags: str) -> SimpleNamespace:
        given = tmp_path / "stdin"
        given.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
        with given.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            words = ("--config", "toy", "--load_checkpoint", "weights", *flags)
            status = cli.run_verb("chat", spec, words)
        captured = capsys.readouterr()
        model = models[-1] if models else None
        return SimpleNamespace(status=status, out=captured.out, err=captured.err, model=model)

    return run


def test_a_line_is_a_question_and_answers_are_all_that_is_printed(chat):
    done = chat("Hello\n\n  two  \nthree")
    assert (done.status, done.out, done.err) == (0, "1 seen\n2 seen\n3 seen\n", "")
    assert done.model.prompts[-1] == "u:Hello\na:1 seen\nu:two\na:2 seen\nu:three\n"


def test_nothing_at_all(chat):
    done = chat("")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_several_lines(chat):
    done = chat('"""one\n/two\n\n  three"""\n"""/four"""\n"""\nfive\n"""\n')
    assert done.status == 0
    assert done.model.prompts[-1] == (
        "u:one\n/two\n\n  three\na:1 seen\nu:/four\na:2 seen\nu:five\n"
    )
    done = chat('a\n"""one\n')
    assert done.status == 2 and done.out == "1 seen\n"
    assert done.err == 'error: message: the input ends inside """; must end with """; add it\n'


def test_bytes_that_are_no_text(chat):
    done = chat(b"caf\xe9\r\nok\n")
    assert done.status == 0 and done.model.prompts[0] == "u:caf\ufffd\n"
    assert done.model.prompts[1].endswith("u:ok\n")


def test_commands(chat):
    done = chat("a\n/history\n/system  Be brief. \nb\n/reset\nc\n/system\n/history\nd\n/quit\ne\n")
    assert done.status == 0 and done.err == ""
    assert done.model.prompts == [
        "u:a\n",
        "s:Be brief.\nu:a\na:1 seen\nu:b\n",
        "s:Be brief.\nu:c\n",
        "u:c\na:1 seen\nu:d\n",
    ]
    assert done.out == (
        "1 seen\nuser: a\nassistant: 1 seen\n2 seen\n1 seen\nuser: c\nassistant: 1 seen\n2 seen\n"
    )


def test_help_names_every_command(chat):
    done = chat("/help\n/nothing\n")
    known = done.err.partition("one of ")[2].partition(";")[0].split(", ")
    assert "/reset" in known and all(name in done.out for name in known if name != "/help")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/resett", "/resett: is no command; must be one of /reset, "),
        ("/", "/: is no command"),
        ("/save", "/save: names no file; must name one; write /save FILE"),
        ("/load nothing.json", "nothing.json: cannot be read (No such file or directory)"),
        ("/save x\0y", "/save: names no file"),
        ("/save /dev/null/x", "/dev/null/x: cannot be written (Not a dir"),
        (f"/save {'x' * 300}", "File name too long"),
        ("/load ~nobody-here/x", "cannot be read (No such file"),
        ("/load .", ".: cannot be read (Is a directory)"),
        ("/system #", "message: holds #; must not"),
        ("# me", "message: holds #; must not"),
        ("x" * CONTEXT, f"message: has {CONTEXT + 3} tokens; must have at most {CONTEXT - 1}"),
    ],
)
def test_what_is_refused_is_one_line_and_is_forgotten(chat, line, says):
    done = chat(f"a\n{line}\nb\n")
    assert done.status == 2
    assert done.err.startswith("error: ") and says in done.err and done.err.count("\n") == 1
    assert done.out == "1 seen\n2 seen\n"
    assert done.model.prompts == ["u:a\n", "u:a\na:1 seen\nu:b\n"]


def test_the_oldest_rounds_go_and_the_system_message_stays(chat):
    done = chat("".join(f"question {n}\n" for n in range(9)), "--system", "S")
    assert done.status == 0
    for number, prompt in enumerate(done.model.prompts):
        assert prompt.startswith("s:S\n") and prompt.endswith(f"u:question {number}\n")
        assert len(prompt) <= CONTEXT * 3 // 4
    assert "(the context is full: the model no longer sees the first 1 round(s))\n" in done.err
    assert "u:question 0\n" not in done.model.prompts[-1]


def test_saved_and_loaded(chat, tmp_path):
    done = chat("/system S\na\n/save talk.json\nb\n/save talk.json\n")
    assert done.status == 0 and done.err.count("(saved ") == 2
    saved = json.loads((tmp_path / "talk.json").read_text())
    texts = [(message["role"], message["content"]) for message in saved["messages"]]
    assert texts == [
        ("system", "S"), ("user", "a"), ("assistant", "1 seen"), ("user", "b"),
        ("assistant", "2 seen"),
    ]  # fmt: skip
    done = chat("/load talk.json\nc\n/save talk.json\n/reset\n/save talk.json\n")
    assert done.model.prompts == ["s:S\nu:a\na:1 seen\nu:b\na:2 seen\nu:c\n"]
    assert done.status == 2 and "/save: talk.json is there already; must be new" in done.err
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 7
    assert [path.name for path in tmp_path.glob("*talk*")] == ["talk.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no "messages"'),
        ('{"messages": "no"}', "messages: is str"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "ends with a question"),
        ('{"messages": [{"role": "user"}]}', "messages[0]: is {'role': 'user'}"),
        (b"\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_hold_no_conversation(tmp_path, text, says):
    path = tmp_path / "talk.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GenerationError) as caught:
        read_conversation(path)
    assert str(caught.value).startswith(f"{path}: {says}"), caught.value


def test_a_stopped_answer_counts_as_far_as_it_came(chat):
    done = chat("a\nplease stop\nb\n")
    assert done.status == 0 and "(stopped; the question is forgotten)" in done.err
    assert done.model.prompts[-1] == "u:a\na:1 seen\nu:b\n"
    assert done.out == "1 seen\n\n2 seen\n"


def test_flags(chat):
    flags = ("--do_sample", "--top_k", "3", "--temperature", "0.5", "--max_new_tokens", "9")
    done = chat("a\nb\n", *flags, "--seed", "4")
    first, second = done.model.settings
    assert (first.do_sample, first.top_k, first.temperature) == (True, 3, 0.5)
    assert (first.max_new_tokens, first.max_length) == (9, None)
    assert (first.seed, second.seed) == (4, 5)
    assert chat("a\n").model.settings[0].seed is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_beams", "2"], "num_beams: 2; must be 1 to chat"),
        (["--top_p", "3"], "top_p: 3.0; must be"),
        (["--predict_data", "a"], "predict_data: is for `predict`"),
        (["--system", "#"], "message: holds #"),
    ],
)
def test_wrong_flags(chat, flags, says):
    done = chat("a\n", *flags)
    assert done.status == 2 and done.out == "" and says in done.err
    assert done.err.count("\n") == 1


def test_a_model_that_cannot_chat(capsys, spec):
    other = ModelSpec(**{name: getattr(spec, name) for name in spec.__slots__} | {"chat": False})
    assert cli.run_verb("chat", other, []) == 2
    assert "lm chat: toy has no chat format; must be a model that was" in capsys.readouterr().err


def test_input_that_is_closed(chat, monkeypatch, spec, capsys):
    chat("a\n")
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.run_verb("chat", spec, ["--config", "toy", "--load_checkpoint", "weights"]) == 2
    assert capsys.readouterr().err.startswith("error: standard input: is closed")


CTRL_C = """
import os, signal, threading, time
from lm_core.tasks.keyboard import CtrlC

def press():
    os.kill(os.getpid(), signal.SIGINT)

def interrupts(context):
    try:
        with context:
            press()
            for _ in range(1000):
                time.sleep(0.01)
    except KeyboardInterrupt:
        return True

before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
with CtrlC() as ctrl_c:
    assert not ctrl_c.pressed()
    press()
    assert ctrl_c.pressed() and not ctrl_c.pressed()
    press()
    with ctrl_c.allowed():  # too late for an answer, and not meant for the prompt
        pass
    assert interrupts(ctrl_c.allowed()) and not ctrl_c.pressed()
    with ctrl_c.watched():
        pass
    assert interrupts(ctrl_c.watched()) and threading.active_count() == 1
    press()  # after the last answer
assert before == (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_ctrl_c_waits_until_it_is_looked_for():
    """In a process of its own: threads of this one do not block signals."""
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_somebody_waits_for_the_keyboard(monkeypatch):
    """The other ranks, in an exchange that must not last for ever."""
    ends, gives = os.pipe()
    monkeypatch.setattr(keyboard, "BEAT_SECONDS", 0.01)
    beats = []

    def beat():
        beats.append(1)
        if len(beats) == 3:
            os.write(gives, b"one\ntw")
        if len(beats) == 6:
            os.write(gives, b"o\nlast")
            os.close(gives)

    with open(ends) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with keyboard.CtrlC() as ctrl_c:
            reader = keyboard.Keyboard(ctrl_c, beat)
            found = [reader.message() for _ in range(4)]
    assert found == [("one", False), ("two", False), ("last", False), None]
    assert len(beats) == 6


def test_nothing_starts_threads_before_the_verb_runs():
    """Threads of NumPy's and MindSpore's libraries inherit what signals are blocked."""
    program = (
        "import sys; from lm_core import cli, spec; from lm_core.tasks import chat; "
        "spec.installed(); sys.exit('numpy' in sys.modules or 'mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
