"""`serve` as users start it: OpenAI's client, many clients at once, and the end of the process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lm_core import AutoModel, AutoTokenizer, cli, pipeline
from lm_core.testing import tiny
from lm_llama import SPEC
from lm_llama.tokenizer import LlamaTokenizer

openai = pytest.importorskip("openai")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A fox?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama_serve")
    tokenizer = LlamaTokenizer(tiny.sentencepiece_model())
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "seq_length": 160}
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, **sizes)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "lm_llama.serve", "--load_checkpoint", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *words], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += iter(self.process.stderr.readline, "")

    @property
    def url(self) -> str:
        return self.until(r"serving llama at (\S+) ")

    def until(self, pattern: str) -> str:
        """The group of a line that is, or comes to be, on stderr."""
        end = time.monotonic() + 120
        while time.monotonic() < end and (self.process.poll() is None or self._reader.is_alive()):
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="x", max_retries=0, **options)

    def memory(self) -> int:
        """Megabytes that the process holds now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) >> 10

    def ended(self, seconds: float = 60) -> int:
        status = self.process.wait(seconds)
        self._reader.join()
        return status


@pytest.fixture
def served(folder, monkeypatch):
    """`served(*words, **environment)`: servers that end with the test."""
    monkeypatch.setenv("NO_PROXY", "*")
    found = []

    def start(*words, **environment):
        found.append(Served(folder, *words, **environment))
        return found[-1]

    yield start
    for server in found:
        server.process.kill()
        server.ended()


@pytest.fixture(scope="module")
def generator(folder):
    return pipeline(
        "text_generation", AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )


def question(number: int) -> dict:
    """One of many requests: prompts of all lengths, some drawn, some with a penalty."""
    prompt = " ".join(tiny.text(20, seed=number).split()[: 1 + number % 23])
    kinds = (
        {"temperature": 0},
        {"temperature": 1.2, "top_p": 0.9, "seed": number},
        {"temperature": 0, "repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 0, "seed": 7},
    )
    return {"prompt": prompt, "max_tokens": 4 + number % 29, **kinds[number % 4]}


def expected(generator, asked: dict) -> str:
    """What `generate` gives for it alone."""
    options = {k: v for k, v in asked.items() if k not in ("prompt", "max_tokens", "temperature")}
    if asked["temperature"]:
        options |= {"do_sample": True, "temperature": asked["temperature"]}
    ids = generator.tokenizer(asked["prompt"])["input_ids"]
    new = {"max_new_tokens": asked["max_tokens"]}
    (row,) = generator.continue_ids([ids], **{"do_sample": False, **options}, **new)
    return generator.decode(row[len(ids) :])


def ask(client, asked: dict) -> str:
    own = {name: asked[name] for name in ("top_k", "repetition_penalty") if name in asked}
    rest = {name: asked[name] for name in asked if name not in own}
    stream = len(asked["prompt"]) % 2 == 0
    done = client.completions.create(model="llama", **rest, extra_body=own, stream=stream)
    return "".join(chunk.choices[0].text for chunk in (done if stream else [done]))


@pytest.mark.slow
def test_two_hundred_clients_at_once(served, generator):
    """None is lost, each gets what it would get alone, and memory stays what it was."""
    server = served()
    asked = [question(number) for number in range(200)]
    with server.client(timeout=120) as client, ThreadPoolExecutor(200) as pool:
        list(pool.map(lambda one: ask(client, one), asked[:100]))
        before = server.memory()
        found = list(pool.map(lambda one: ask(client, one), asked))
        assert server.memory() < before + 100
    server.process.terminate()
    assert server.ended() == 0
    alone = [expected(generator, one) for one in asked]
    wrong = [n for n in range(200) if found[n].strip() != alone[n].strip()]
    assert not wrong


@pytest.mark.slow
def test_a_conversation_a_key_and_a_gentle_end(served, generator):
    """SIGTERM: no new requests, an answer that has begun is finished, status 0."""
    server = served("--max_batch", "2", "--do_sample", "False", LM_API_KEY="x")
    client = server.client(timeout=60)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="y").models.list()
    done = client.chat.completions.create(model="llama", messages=MESSAGES, max_tokens=12)
    (answer,) = generator(MESSAGES, max_new_tokens=12, do_sample=False)
    assert done.choices[0].message.content.strip() == answer["text_generation_text"][0]
    options = {"model": "llama", "prompt": "The", "max_tokens": 150, "stream": True}
    stream = client.completions.create(**options)
    text = next(stream).choices[0].text
    server.process.send_signal(signal.SIGTERM)
    server.until("ending: ")
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert server.ended() == 0
    whole = expected(generator, {"prompt": "The", "max_tokens": 150, "temperature": 0})
    assert text.strip() == whole.strip()


def refused(capsys, *words: str) -> str:
    assert cli.run_verb("serve", SPEC, words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_served_is_one_line(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LM_API_KEY", raising=False)
    load = ("--load_checkpoint", str(folder), "--port", "0")
    assert "0.0.0.0 can be reached from other machines; must have a key then" in refused(
        capsys, *load, "--host", "0.0.0.0"
    )
    assert "is no address of this machine" in refused(capsys, *load, "--host", "no.such.host.")
    assert "seed: is a matter of each request" in refused(capsys, *load, "--seed", "1")
    (tmp_path / "key").write_text("two words\n")
    key = ("--api_key_file", str(tmp_path / "key"))
    assert "key: holds no key; must be one word" in refused(capsys, *load, *key)
    key = ("--api_key_file", str(tmp_path / "none"))
    assert "none: No such file or directory" in refused(capsys, *load, *key)
    assert "max_length: 1; must be at least 2" in refused(capsys, *load, "--max_length", "1")
    assert "load_checkpoint: is missing" in refused(capsys, "--config", "llama_tiny")
    from lm_core.serving.server import Place

    with Place(port=0).bound() as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port: {port} on 127.0.0.1 cannot be had" in refused(capsys, *load, "--port", port)


def test_without_the_extra(folder, capsys, monkeypatch):
    from lm_core.tasks import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    line = refused(capsys, "--load_checkpoint", str(folder))
    assert "starlette and uvicorn" in line and "pip install 'lm-core[serve]'" in line
