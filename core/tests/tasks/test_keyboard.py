"""Ctrl-C while a line is read."""

from __future__ import annotations

import ctypes
import signal
import threading
import time

import pytest

from lm_core.tasks.keyboard import CtrlC


def test_a_ctrl_c_that_wakes_nobody_is_sent_again():
    """Another thread gets it, so that a call outside of Python goes on, as the wait for a key."""

    def get_it() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    begin = time.monotonic()
    with CtrlC() as ctrl_c, pytest.raises(KeyboardInterrupt), ctrl_c.allowed():
        threading.Thread(target=get_it, daemon=True).start()
        ctypes.CDLL(None).sleep(20)
    assert time.monotonic() - begin < 10


def test_one_is_one():
    """It is not sent again to somebody who has ended."""
    with CtrlC() as ctrl_c:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt), ctrl_c.allowed():
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
            assert not ctrl_c.pressed()
        with ctrl_c.allowed():
            pass
