"""The process that holds the test. It asks a program it does not trust, and decides.

The test runs here, among what the *prompt* defines, with a stand-in for the function under test
that asks the program. So a test that uses a helper of the prompt gets the prompt's, not what the
program made of it.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import time
from types import ModuleType
from typing import Any, BinaryIO

from lm_core.sandbox import jail, linux, program, values

PASSED, TIMED_OUT = "passed", "timed out"
_NAME = "test"
_PARTING = 0.5
"""Seconds from a closed pipe to the end of the process, if it ends at all."""


class EndedError(BaseException):
    """The program ended, or did not keep to the form of answers; no test can catch it by chance."""


class ForeignError(Exception):
    """The program raised something that only it knows, or wanted to exit."""


def main(requests: int, reports: int, folders: list[tuple[str, str]], limits: jail.Limits) -> None:
    """The first process of the namespaces: builds them, starts the program, judges, ends.

    Args:
        requests: descriptor that the task comes from, in one line.
        reports: descriptor for what is found, a line each.
        folders: what the interpreter needs.
        limits: of the program.
    """
    with open(requests, "rb") as reader, open(reports, "wb") as writer:
        try:
            asker = _closed_down(folders, limits, (requests, reports))
        except (linux.RefusalError, OSError, EOFError, ValueError) as error:
            values.send(writer, {"refused": _refusal(error)})
            return
        values.send(writer, {"ready": True})
        # The supervisor waits for that line, so the task cannot be in memory that a fork copied.
        task = values.receive(reader)
        values.send(writer, {"result": asker.judged(task)})


def _closed_down(
    folders: list[tuple[str, str]], limits: jail.Limits, private: tuple[int, ...]
) -> Program:
    jail.build_root(folders)
    asker = Program.start(limits, private)
    jail.close_down(limits)
    linux.die_with_parent()
    # The first process of a namespace gets no signal from inside for which it has no handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asker.await_ready()
    return asker


def _refusal(error: Exception) -> str:
    if isinstance(error, linux.RefusalError):
        return str(error)
    return str(linux.refuse("a closed process", f"{type(error).__name__}: {error}"))


class Program:
    """The process of a program, seen from the judge."""

    def __init__(self, process: int, requests: BinaryIO, answers: BinaryIO) -> None:
        self.process, self.requests, self.answers = process, requests, answers
        self.ended = ""

    @classmethod
    def start(cls, limits: jail.Limits, private: tuple[int, ...]) -> Program:
        """Starts it in a process namespace below, without the descriptors `private`."""
        to_read, to_ask = os.pipe()
        to_hear, to_answer = os.pipe()
        jail.below()
        process = os.fork()
        if process == 0:
            try:
                for descriptor in private:
                    os.close(descriptor)
                program.serve(to_read, to_answer, limits)
            finally:
                os._exit(1)
        os.close(to_read)
        os.close(to_answer)
        return cls(process, open(to_ask, "wb"), open(to_hear, "rb"))

    def await_ready(self) -> None:
        """Waits until it has closed down.

        Raises:
            RefusalError: it could not, and must not be used.
        """
        said = values.receive(self.answers)
        if "refused" in said:
            raise linux.RefusalError(str(said["refused"]))

    def judged(self, task: dict[str, str]) -> str:
        """`passed`, `timed out`, or `failed: ` and why."""
        failed = ""
        try:
            self._ask({"source": task["program"], "entry_point": task["entry_point"]})
            self._test(task)
        except BaseException as error:
            failed = str(error) or type(error).__name__
        if self.ended:
            return self._ending()
        return f"failed: {failed}" if failed else PASSED

    def _test(self, task: dict[str, str]) -> None:
        space = _namespace(task["prompt"])
        space[task["entry_point"]] = self.call
        exec(compile(task["test"], f"{_NAME}.py", "exec"), space)
        space["check"](self.call)

    def call(self, *arguments: Any, **named: Any) -> Any:
        """What the program's function returns; raises what it raises, where that is Python's own.

        Lists and dictionaries among the arguments are changed as the program changed its copies.
        """
        asked = {"arguments": values.encode(list(arguments)), "named": values.encode(named)}
        said = self._ask(asked)
        try:
            value, after = values.decode(said["value"]), values.decode(said["arguments"])
        except (KeyError, ValueError, RecursionError) as error:
            raise self._end(f"the answer is no value ({error})") from None
        for before, now in zip(arguments, after if isinstance(after, list) else (), strict=False):
            _follow(before, now)
        return value

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            values.send(self.requests, message)
            said = values.receive(self.answers)
        except (EOFError, BrokenPipeError):
            raise self._end("the program ended before it answered") from None
        except ValueError as error:
            raise self._end(str(error)) from None
        if "error" in said:
            raise _error(str(said["error"]), str(said.get("text", "")))
        return said

    def _end(self, why: str) -> EndedError:
        """Remembers it, in case that the test catches whatever comes."""
        self.ended = why
        return EndedError(why)

    def _ending(self) -> str:
        """How a program that no longer answers came to its end.

        The first process of a namespace is killed from outside only: by the kernel, for its time.
        """
        until = time.monotonic() + _PARTING
        found, status = 0, 0
        while not found and time.monotonic() < until:
            time.sleep(0.01)
            found, status = os.waitpid(self.process, os.WNOHANG)
        if not found:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        return TIMED_OUT if killed(status) else f"failed: {self.ended}"


def killed(status: int) -> bool:
    """Whether a process ended by SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _namespace(prompt: str) -> dict[str, Any]:
    """What the prompt defines: imports and helpers. It ends inside a function, maybe empty."""
    module = ModuleType(_NAME)
    sys.modules[_NAME] = module
    for source in (prompt, f"{prompt}\n    pass\n", ""):
        try:
            code = compile(source, "prompt.py", "exec")
        except SyntaxError:
            continue
        exec(code, module.__dict__)
        break
    return module.__dict__


def _follow(before: Any, now: Any) -> None:
    """Makes an argument what the program made of its copy."""
    if isinstance(before, list) and isinstance(now, list):
        before[:] = now
    for kind in (dict, set):
        if isinstance(before, kind) and isinstance(now, kind):
            before.clear()
            before.update(now)


def _error(kind: str, text: str) -> BaseException:
    found = getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(text)
        except TypeError:  # UnicodeDecodeError and the like want more
            pass
    return ForeignError(f"{kind}: {text}" if text != kind else kind)
