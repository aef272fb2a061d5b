"""Asking to stop, with real signals; in processes of their own where one may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lm_core.train.signals import StopRequest


def until(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number, capsys):
    with StopRequest("saving, then stopping") as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert until(lambda: stop.number == number)
    assert f"{number.name}: saving, then stopping" in capsys.readouterr().err


def test_handlers_are_as_before():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    for _ in range(3):
        with StopRequest():
            assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_another_thread_takes_no_signals():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequest() as stop:
            inside.append((signal.getsignal(signal.SIGINT), bool(stop)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


def test_renewed_after_somebody_took_the_handler():
    with StopRequest() as stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop.renew()
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: bool(stop))


SCRIPT = """
import hashlib, sys, time
from lm_core.train.signals import StopRequest
with StopRequest("stopping after this step") as stop:
    print("ready", flush=True)
    if "busy" in sys.argv:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as a graph: minutes, without the GIL
    while not stop:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60 if "hang" in sys.argv else 0)
print("saved", flush=True)
"""


def start(*words: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_once_saves():
    process = start()
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "asked\nsaved\n")
    assert errors.count("\n") == 1 and "SIGTERM: stopping after this step" in errors


def test_twice_at_the_same_time_is_once():
    """`timeout` signals the process, then its group, of which it is one."""
    process = start()
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "asked\nsaved\n")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_ends_at_once(number):
    """Also while one long call runs, in which Python's own handlers would have to wait."""
    process = start("busy" if number == signal.SIGINT else "hang")
    process.send_signal(number)
    assert "once more ends it at once" in process.stderr.readline()
    time.sleep(1.1)
    begin = time.monotonic()
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number
    assert "second time" in errors and "saved" not in out
