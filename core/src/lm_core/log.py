"""Messages on stderr, one line each; a progress bar on a terminal, else a line per interval."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_noticed: set[str] = set()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (`get_logger(__name__)`).

    Its package writes to stderr from the level in `LM_LOG` (default INFO) up.
    """
    package = logging.getLogger(name.partition(".")[0])
    if not any(isinstance(handler, _Stderr) for handler in package.handlers):
        package.addHandler(_Stderr())
        package.setLevel(_level())
    return logging.getLogger(name)


def notice_once(key: str, message: str) -> None:
    """Logs `message` the first time that `key` comes in this process."""
    if key not in _noticed:
        _noticed.add(key)
        get_logger("lm_core").info(message)


def _level() -> int:
    wanted = os.environ.get("LM_LOG", "INFO").upper()
    return getattr(logging, wanted) if wanted in _LEVELS else logging.INFO


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment, above a progress bar if one is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_OneLine())

    def emit(self, record: logging.LogRecord) -> None:
        # A program that configured logging itself gets each message from there, once.
        if any(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers):
            return
        write_line(self.format(record))


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        now = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{now} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def write_line(text: str) -> None:
    """Writes a line to stderr without tearing a progress bar."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and getattr(tqdm.tqdm, "_instances", None):
        tqdm.tqdm.write(text, file=sys.stderr)
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(
    iterable: Iterable[Any] | None = None,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    *,
    initial: int = 0,
    interval: float = 10.0,
) -> Any:
    """Shows how far a loop is: tqdm's bar on a terminal, else a `Lines` with the same methods.

    Args:
        iterable: what is looped over; None when `update(n)` is called instead.
        total: number of units; the length of `iterable` when it has one.
        desc: what is being done.
        unit: the name of a unit.
        initial: units done before, when work is resumed.
        interval: seconds between lines where there is no terminal.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(
            iterable,
            total=total,
            desc=desc,
            unit=unit,
            initial=initial,
            dynamic_ncols=True,
            file=sys.stderr,
        )
    return Lines(iterable, total, desc, unit, initial, interval)


class Lines:
    """Progress for a file or a pipe: a line when an interval has passed, and one at the end."""

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        total: float | None,
        desc: str,
        unit: str,
        initial: float = 0,
        interval: float = 10.0,
    ) -> None:
        self.iterable, self.total, self.desc, self.unit = iterable, total, desc, unit
        self.n, self.initial, self.interval, self.postfix = initial, initial, interval, ""
        self.start = self.last = time.monotonic()
        self.shown = -1.0
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        if self.iterable is None:
            raise TypeError("this progress has nothing to loop over: call update()")
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Counts `n` more units."""
        self.n += n
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            self._show(now)

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """What stands at the end of the line."""
        self.postfix = text

    def refresh(self) -> None:
        """A bar draws itself again; lines have nothing to do."""

    def close(self) -> None:
        """Writes the last state, once."""
        if not self.closed:
            self.closed = True
            if self.shown != self.n:
                self._show(time.monotonic())

    def _show(self, now: float) -> None:
        self.shown = self.n
        rate = (self.n - self.initial) / max(now - self.start, 1e-9)
        count = (
            f"{self.n:g}/{self.total:g} {self.unit}" if self.total else f"{self.n:g} {self.unit}"
        )
        parts = [count, f"{rate:.3g} {self.unit}/s"]
        if self.total:
            parts.insert(1, f"{100 * self.n / self.total:.0f} %")
            left = (self.total - self.n) / rate if rate else 0.0
            parts.append(
                f"{clock(left)} left" if self.n < self.total else f"took {clock(now - self.start)}"
            )
        if self.postfix:
            parts.append(self.postfix)
        write_line(f"{self.desc}: {', '.join(parts)}" if self.desc else ", ".join(parts))


def clock(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def byte_count(number: int) -> str:
    """1234567 -> "1.2 MB"."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"
