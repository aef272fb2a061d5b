"""How the process ends: what it was asked before is answered, and nothing else."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
PROGRAM = Path(__file__).parents[3] / "tests" / "scripted_server.py"
LONG = {"model": "toy", "prompt": "endless", "max_tokens": 100, "stream": True}


class Process:
    """A scripted server; its client has asked for 100 tokens and has seen some."""

    def __init__(self, pause: float, drain_seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(pause), str(drain_seconds)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.client, self.seen = socket.socket(), b""

    def begin(self) -> None:
        self.port = int(self.process.stdout.readline())
        self.client, self.seen = self.connected(LONG), b""
        while b"la" not in self.seen.replace(b'"text":"l"', b"la"):
            self.seen += self.client.recv(1 << 16)

    def connected(self, values: dict) -> socket.socket:
        body = json.dumps(values).encode()
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        return client

    def answer(self) -> str:
        """All that the client gets."""
        while part := self.client.recv(1 << 16):
            self.seen += part
        return self.seen.decode()

    def told(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        assert "ending: 1 request(s)" in self.process.stderr.readline()

    def ended(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=30)
        return self.process.returncode, out, errors


@pytest.fixture
def start():
    found = []

    def started(pause: float, drain_seconds: float) -> Process:
        found.append(Process(pause, drain_seconds))
        found[-1].begin()
        return found[-1]

    yield started
    for one in found:
        one.client.close()
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_before_is_answered(start, number):
    one = start(0.01, 30)
    one.told(number)
    with one.connected(LONG) as late:
        assert late.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
    answer = one.answer()
    assert answer.count('"text":') > 50 and '"finish_reason":"length"' in answer
    assert "data: [DONE]" in answer
    assert one.ended() == (0, "ended\n", "")


def test_an_answer_that_takes_too_long_then_is_ended(start):
    one = start(0.2, 0.5)
    begin = time.monotonic()
    one.told(signal.SIGTERM)
    assert "server: is shutting down" in one.answer()
    status, _, errors = one.ended()
    assert status == 0 and "some requests took too long and are ended" in errors
    assert time.monotonic() - begin < 10  # the rest would take 20 s


def test_a_second_signal_does_not_wait(start):
    one = start(0.2, 60)
    begin = time.monotonic()
    one.told(signal.SIGTERM)
    one.process.send_signal(signal.SIGTERM)
    assert "server: is shutting down" in one.answer()
    assert one.ended()[0] == 0 and time.monotonic() - begin < 10
