"""Messages and progress, on a terminal and in a file."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys

import pytest

from lm_core import log
from lm_core.log import Lines, clock, get_logger, notice_once, progress


def run(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0 and done.stdout == "", done
    return done.stderr.splitlines()


MESSAGES = """
from lm_core.log import *
log = get_logger('lm_core.x')
log.debug('d')
log.info('i %d', 3)
log.warning('w')
get_logger('lm_gpt2.y').error('e')
"""


def test_one_line_a_message_on_stderr():
    lines = run(MESSAGES)
    assert [line[9:] for line in lines] == ["i 3", "warning: w", "error: e"]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


@pytest.mark.parametrize(
    ("level", "count"),
    [("DEBUG", 4), ("info", 3), ("WARNING", 2), ("ERROR", 1), ("CRITICAL", 0), ("nonsense", 3)],
)
def test_the_level_is_set_from_outside(level, count):
    assert len(run(MESSAGES, LM_LOG=level)) == count


def test_a_program_that_logs_itself_gets_each_message_once():
    lines = run(f"import logging; logging.basicConfig(level='INFO'){MESSAGES}")
    assert lines == ["INFO:lm_core.x:i 3", "WARNING:lm_core.x:w", "ERROR:lm_gpt2.y:e"]


def test_a_traceback_is_kept():
    lines = run(
        "from lm_core.log import *\n"
        "try: 1/0\nexcept Exception: get_logger('lm_core').exception('oh')"
    )
    assert lines[0].endswith("error: oh") and lines[-1].startswith("ZeroDivisionError")


def test_loggers_are_made_once():
    get_logger("lm_core.a")
    get_logger("lm_core.b.c")
    assert (
        len(logging.getLogger("lm_core").handlers) == 1
        and not logging.getLogger("lm_core.a").handlers
    )


def test_a_notice_comes_once(caplog, monkeypatch):
    monkeypatch.setattr(log, "_noticed", set())
    with caplog.at_level("INFO"):
        for _ in range(3):
            notice_once("key", "said")
        notice_once("other", "said too")
    assert [record.message for record in caplog.records] == ["said", "said too"]


@pytest.fixture
def lines(monkeypatch):
    """What is written, without the time."""
    written: list[str] = []
    monkeypatch.setattr(log, "write_line", written.append)
    return written


@pytest.fixture
def now(monkeypatch):
    clock_ = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock_[0])
    return clock_


def test_a_line_per_interval_and_one_at_the_end(lines, now):
    bar = progress(total=100, desc="train", unit="step", interval=10)
    assert isinstance(bar, Lines)
    for _ in range(100):
        now[0] += 0.5
        bar.update()
    bar.set_postfix_str("loss=3.142, lr=1e-05, n=3")
    bar.close()
    bar.close()
    assert lines[0] == "train: 20/100 step, 20 %, 2 step/s, 0:40 left"
    assert [line.split(" ")[1] for line in lines] == [
        "20/100",
        "40/100",
        "60/100",
        "80/100",
        "100/100",
    ]
    assert len(lines) == 5  # the last step's line is the end's


def test_the_end_is_written_when_no_interval_passed(lines, now):
    with progress(total=3, unit="file", interval=10) as bar:
        for _ in range(3):
            now[0] += 1.0
            bar.update()
        bar.set_postfix_str("done")
    assert lines == ["3/3 file, 100 %, 1 file/s, took 0:03, done"]


def test_looping(lines, now):
    assert list(progress([1, 2, 3], desc="x")) == [1, 2, 3]
    assert lines[-1].startswith("x: 3/3 it, 100 %")
    assert list(progress(iter("ab"))) == ["a", "b"]
    assert lines[-1].startswith("2 it, ")
    assert list(progress([])) == []
    with pytest.raises(TypeError, match="update"):
        next(iter(progress(total=3)))


def test_a_loop_that_is_left_ends_its_line(lines, now):
    for item in progress(range(10), desc="x"):
        if item == 3:
            break
    assert lines and lines[-1].startswith("x: 3/10")


def test_resumed_work_is_not_counted_as_speed(lines, now):
    bar = progress(total=100, initial=90, interval=1)
    now[0] += 1.0
    bar.update()
    assert lines == ["91/100 it, 91 %, 1 it/s, 0:09 left"]


def test_the_terminal_gets_a_bar_and_messages_do_not_tear_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(range(3), desc="bar", unit="step") as bar:
        for _ in bar:
            log.write_line("a message")
    text = terminal.getvalue()
    assert "bar" in text and "3/3" in text and "step/s" in text
    assert text.count("a message\n") == 3
    assert {
        "update",
        "set_postfix_str",
        "close",
        "refresh",
    } <= set(dir(bar)) & set(dir(Lines))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (5.4, "0:05"), (65, "1:05"), (3725, "1:02:05"), (90061, "25:01:01")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_byte_counts():
    from lm_core.log import byte_count

    found = [byte_count(number) for number in (0, 999, 1000, 1_234_567, 5 * 10**9, 3 * 10**12)]
    assert found == ["0 B", "999 B", "1.0 KB", "1.2 MB", "5.0 GB", "3000.0 GB"]
