"""The process that holds the program: runs it, and answers `f(arguments)` until it is ended.

Whatever is here, the program can change. Nothing that decides is here.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import ModuleType
from typing import Any, BinaryIO

from lm_core.sandbox import jail, linux, values

_NAME = "program"
_REQUESTS, _ANSWERS = 3, 4


def serve(requests: int, answers: int, limits: jail.Limits) -> None:
    """Closes down, runs a program, and answers for it.

    Args:
        requests: descriptor that lines come from; the first is the program.
        answers: descriptor that they are answered on.
        limits: of the program.
    """
    _keep_only(requests, answers)
    os.setsid()
    with open(_REQUESTS, "rb") as reader, open(_ANSWERS, "wb") as writer:
        try:
            jail.mount_scratch(limits.scratch)
            jail.close_down(limits)
        except linux.RefusalError as error:
            values.send(writer, {"refused": str(error)})
            return
        values.send(writer, {"ready": True})
        _answer(reader, writer)


def _keep_only(requests: int, answers: int) -> None:
    high = [os.dup2(requests, 100), os.dup2(answers, 101)]
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in enumerate((null, null, null, *high)):
        os.dup2(source, target)
    os.closerange(_ANSWERS + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    sys.argv[:] = [_NAME]


def _answer(reader: BinaryIO, writer: BinaryIO) -> None:
    asked = values.receive(reader)
    try:
        function = _load(asked["source"], asked["entry_point"])
    except BaseException as error:
        values.send(writer, _failure(error))
        return
    values.send(writer, {"loaded": True})
    while True:
        asked = values.receive(reader)
        values.send(writer, _call(function, asked))


def _load(source: str, entry_point: str) -> Any:
    module = ModuleType(_NAME)
    sys.modules[_NAME] = module
    exec(compile(source, f"{_NAME}.py", "exec"), module.__dict__)
    return module.__dict__[entry_point]


def _call(function: Any, asked: dict[str, Any]) -> dict[str, Any]:
    arguments, named = values.decode(asked["arguments"]), values.decode(asked["named"])
    try:
        value = function(*arguments, **named)
        return {"value": values.encode(value), "arguments": values.encode(arguments)}
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> dict[str, Any]:
    """The error by the nearest class that the judge knows, too."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if hasattr(builtins, kind.__name__)]
    try:
        text = str(error)
    except Exception:
        text = ""
    return {"error": kinds[0], "text": f"{text or type(error).__name__}"}
