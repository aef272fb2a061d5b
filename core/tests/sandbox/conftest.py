"""Programs in the sandbox, and what they leave on the host."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_core.errors import SandboxError
from lm_core.sandbox import runner
from lm_core.sandbox.jail import Limits

AMPLE = Limits(seconds=20, wall_seconds=100.0)
"""For programs that end by themselves, on a busy machine too."""
CAPABILITIES = """
import ctypes, os
def f():
    call = {"x86_64": 125, "aarch64": 90}[os.uname().machine]
    header, found = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).syscall(call, header, found) == 0
    bounding = [ctypes.CDLL(None).prctl(23, number, 0, 0, 0) for number in range(41)]
    return list(found), max(bounding), os.getresuid(), os.path.exists("/etc")
"""
NO_CAPABILITIES = repr(([0] * 6, 0, (1000,) * 3, False))


@pytest.fixture(scope="session")
def sandbox() -> SimpleNamespace:
    """`judge(program, test)` -> result, `saw(program)` -> what `f` returned, as text.

    `who` is a program that returns its privileges, `nobody` what it must return.
    """
    try:
        runner.require()
    except SandboxError as error:
        pytest.skip(str(error))

    def judge(program: str, test: str = "assert f() == 42", limits: Limits = AMPLE) -> str:
        check = f"def check(f):\n    {test}\n"
        task = runner.Task(program=program, prompt="", test=check, entry_point="f")
        return runner.run(task, limits)

    def saw(program: str, limits: Limits = AMPLE) -> str:
        return judge(program, "raise ValueError(repr(f()))", limits).removeprefix("failed: ")

    return SimpleNamespace(judge=judge, saw=saw, who=CAPABILITIES, nobody=NO_CAPABILITIES)


@pytest.fixture
def unchanged(tmp_path: Path):
    """No process, mount or file more than before."""
    mounts = Path("/proc/self/mounts").read_text()
    yield
    assert left() == []
    assert Path("/proc/self/mounts").read_text() == mounts
    assert list(tmp_path.iterdir()) == []


def left() -> list[int]:
    """Processes that sandboxes of this process started; forks keep its number in their words."""
    own = str(os.getpid()).encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:
            continue
        if len(words) > 2 and words[-2] == own and b"supervisor.main" in b" ".join(words):
            found.append(int(folder.name))
    return found
