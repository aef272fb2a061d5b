"""`chat` with a real model in a terminal: Ctrl-C ends answers, and conversations go on."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parent / "chat_program.py"
PROMPT = ">>> "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a context so long that an answer does not end by itself."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(60)], 300))
    end = tokenizer.eos_token_id
    model = tiny.model(
        SPEC, vocab_size=tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
        seq_length=8192, bos_token_id=end, eos_token_id=end, pad_token_id=end, unk_token_id=end,
    )  # fmt: skip
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


class Terminal:
    """A chat at a terminal."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, str(PROGRAM), *map(str, words)]
        self.number, self._file = pty.fork()
        if self.number == 0:
            os.execve(command[0], command, {**os.environ, "TERM": "dumb"})
        self._text = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown up to and with this text."""
        end = time.monotonic() + seconds
        while text not in self._text:
            assert time.monotonic() < end, self._text
            if select.select([self._file], [], [], 0.1)[0]:
                try:
                    self._text += os.read(self._file, 1 << 16).decode("utf-8", "replace")
                except OSError:  # the program has ended
                    raise AssertionError(self._text) from None
        found, _, self._text = self._text.partition(text)
        return found + text

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def answering(self) -> None:
        """Waits until tokens of an answer come."""
        length = len(self._text)
        end = time.monotonic() + 60
        while len(self._text) < length + 20:
            assert time.monotonic() < end, self._text
            self._text += os.read(self._file, 1 << 16).decode("utf-8", "replace")

    def status(self) -> int:
        while select.select([self._file], [], [], 10)[0]:
            try:
                self._text += os.read(self._file, 1 << 16).decode("utf-8", "replace")
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])

    def close(self) -> None:
        try:
            os.kill(self.number, signal.SIGKILL)
            os.waitpid(self.number, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._file)


@pytest.fixture
def terminal(folder):
    found = Terminal("--load_checkpoint", folder)
    yield found
    found.close()


def test_ctrl_c_ends_the_answer_and_not_the_conversation(terminal):
    assert "8192 tokens of context; /help says more" in terminal.until(PROMPT)
    for question, stop in (
        ("first", lambda: terminal.type("\x03")),
        ("second", lambda: os.kill(terminal.number, signal.SIGINT)),
        ("third", lambda: terminal.type("\x03\x03")),
    ):
        terminal.type(f"{question}\n")
        terminal.until(f"{question}\r\n")
        terminal.answering()
        stop()
        begin = time.monotonic()
        assert terminal.until(PROMPT).endswith(f"(stopped)\r\n{PROMPT}")
        assert time.monotonic() - begin < 5
    terminal.type("/history\n")
    said = terminal.until(PROMPT)
    found = re.findall(r"user: (\w+)\r\nassistant: (\S+)", said)
    assert [question for question, _ in found] == ["first", "second", "third"]
    assert all(len(answer) >= 10 for _, answer in found), found
    terminal.type("\x03")
    assert terminal.status() == 0


def test_a_terminal(terminal):
    terminal.until(PROMPT)
    terminal.type('"""one\n')
    terminal.until("... ")
    terminal.type('two"""\n')
    terminal.until('two"""\r\n')
    terminal.answering()
    terminal.type("\x03")
    terminal.until(PROMPT)
    terminal.type("/system be brief\n")
    terminal.until(PROMPT)
    terminal.type("/history\n")
    said = terminal.until(PROMPT)
    assert "system: be brief\r\nuser: one\r\ntwo\r\nassistant: " in said
    terminal.type("\x10\r")  # the line before, by the editor's own key
    terminal.until("system: be brief")
    terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.status() == 0


def test_kill_ends_an_answer_and_the_program(terminal):
    terminal.until(PROMPT)
    terminal.type("tell me\n")
    terminal.until("tell me\r\n")
    terminal.answering()
    os.kill(terminal.number, signal.SIGTERM)
    assert terminal.status() == 128 + signal.SIGTERM


def test_a_pipe_gives_what_generate_gives(folder):
    from lm_core import AutoModel, AutoTokenizer

    words = ["--load_checkpoint", str(folder), "--max_new_tokens", "12"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], input="The fox\nand then\n", text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def answer(text: str) -> str:
        ids = tokenizer.encode(text)
        (row,) = model.generate([ids], max_new_tokens=12)
        return tokenizer.decode(row[len(ids) :], skip_special_tokens=True).strip()

    first = answer("\nThe fox\n")
    second = answer(f"\nThe fox\n{first}\nand then\n")
    assert done.stdout == f"{first}\n{second}\n"


RANKED = """
from chat_program import main
from lm_core.tasks import keyboard

keyboard.BEAT_SECONDS = 0.1
raise SystemExit(main())
"""


@pytest.mark.distributed
def test_ranks_that_compute_one_model_say_what_one_process_says(folder, tmp_path):
    """Rank 0 alone reads, thinks of its peers while nobody types, and prints."""
    package = tmp_path / "lm_talk"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "chat.py").write_text(RANKED)
    path = [str(tmp_path), str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")]
    words = ["--load_checkpoint", str(folder), "--max_new_tokens", "8", "--do_sample"]
    words += ["--seed", "3", "--output_dir", str(tmp_path / "output")]

    def answers(processes: int, *more: str) -> str:
        job = subprocess.Popen(
            [sys.executable, "-m", "lm_core.launch", "talk", "chat", *words, *more],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "NPROC": str(processes)},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            job.stdin.write("The fox\n")
            job.stdin.flush()
            first = job.stdout.readline()
            time.sleep(1)
            rest, errors = job.communicate("/history\nand then\n", timeout=120)
        finally:
            job.kill()
            job.wait()
        assert job.returncode == 0, errors
        return first + rest

    alone = answers(1)
    assert answers(2, "parallel_config.model_parallel=2") == alone
    assert alone.count("The fox") == 1
