"""What passes and what does not; cheats do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_core.errors import SandboxError
from lm_core.sandbox import runner
from lm_core.sandbox.jail import Limits
from lm_core.sandbox.runner import Task

SOURCE = Path(runner.__file__).parents[2]
CHEATS = {
    "exit": "exit(0)",
    "_exit": "import os; os._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "atexit": "import atexit, os\n    atexit.register(os._exit, 0)\n    raise SystemExit",
    "kill": "import os; os.kill(0, 9)",
    "close": "import os; os.closerange(0, 100)",
    "equals everything": "return type('Yes', (), {'__eq__': lambda *_: True})()",
    "equals, of a plain class": "return type('Yes', (int,), {'__eq__': lambda *_: True})()",
    "fake result": "import os\n    for n in range(1, 100):\n        try: os.write(n, "
    'b\'{"result": "passed"}\\n\' * 9)\n        except OSError: pass',
    "fake answer": 'import os; os.write(4, b\'{"value": 41, "arguments": []}\\n\')\n    return 42',
    "no answer": "import os; os.write(4, b'[' * 100000 + b'\\n')",
    "not text": "import os; os.write(4, bytes(range(256)) + b'\\n')",
    "of the loop": "import lm_core.sandbox.values as v; v.encode = lambda value: {'pass': 1}",
    "frames": "import sys\n    frame = sys._getframe()\n    while frame:\n        for value in "
    "list(frame.f_locals.values()):\n            if isinstance(value, str) and 'assert' in value: "
    "return 42\n        frame = frame.f_back",
    "memory": "import gc\n    found = [str(o) for o in gc.get_objects() if isinstance(o, dict)]\n"
    "    return 42 if any('def check' + '(f)' in text for text in found) else 0",
    "child": 'import os\n    if os.fork() == 0: os.write(4, b\'{"result": "passed"}\\n\')\n'
    "    os._exit(0)",
    "an error that is caught": "raise AssertionError",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_fail(sandbox, name):
    result = sandbox.judge(f"def f():\n    {CHEATS[name]}\n")
    assert result.startswith("failed: ")


TOP = {
    "exit": "import os\nos._exit(0)",
    "builtins": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n"
    "def f(): return 41",
    "assert": "def check(f): pass\nimport sys\nsys.modules['test'] = sys.modules['__main__']\n"
    "def f(): return 41",
    "no function": "x = 1",
    "not a function": "f = 42",
    "syntax": "def f(: pass",
    "deep": "x = " + "(" * 5000 + ")" * 5000,
}


@pytest.mark.parametrize("name", TOP)
def test_modules_that_are_wrong_fail(sandbox, name):
    assert sandbox.judge(TOP[name]).startswith("failed: ")


def test_a_test_that_catches_everything_does_not_pass_a_program_that_ended(sandbox):
    program = "import os\ndef f():\n    os._exit(0)\n"
    test = "\n    try:\n        f()\n    except BaseException:\n        pass"
    assert sandbox.judge(program, test) == "failed: the program ended before it answered"


def test_errors_cross_as_pythons_own(sandbox):
    program = "class Own(KeyError): pass\ndef f():\n    raise Own('x')\n"
    test = "\n    try:\n        f()\n    except KeyError:\n        return\n    assert False"
    assert sandbox.judge(program, test) == "passed"


def test_arguments_change_as_in_one_interpreter(sandbox):
    program = "def f(a, b, *, c):\n    a.sort()\n    b['x'] = c\n    c.clear()\n"
    test = "a, b, c = [2, 1], {}, {3}; f(a, b, c=c); assert (a, b) == ([1, 2], {'x': {3}})"
    assert sandbox.judge(program, test).startswith("failed")  # c was emptied after it was kept
    test = "a, b = [2, 1], {}; f(a, b, c=[]); assert (a, b) == ([1, 2], {'x': []})"
    assert sandbox.judge(program, test) == "passed"


def test_helpers_of_the_test_are_the_prompts(sandbox):
    """A program cannot make a test easier by writing the helper anew."""
    prompt = "def twice(x):\n    return 2 * x\n\ndef f(x):\n    '''Doubles.'''\n"
    test = "def check(f):\n    assert f(2) == twice(2)\n"
    honest = prompt + "    return twice(x)\n"
    cheat = "def twice(x):\n    return 0\ndef f(x):\n    return 0\n"
    results = [
        runner.run(Task(program=source, prompt=prompt, test=test, entry_point="f"))
        for source in (honest, cheat)
    ]
    assert results == ["passed", "failed: AssertionError"]


def test_results_come_in_the_order_of_the_tasks(sandbox):
    programs = ["import time\ntime.sleep(.5)\ndef f(): return 42", "def f(): return 1"] * 3
    check = "def check(f):\n    assert f() == 42\n"
    tasks = [Task(program=p, prompt="", test=check, entry_point="f") for p in programs]
    found = list(runner.run_all(tasks, Limits(seconds=20, wall_seconds=60.0), 3))
    assert found == ["passed", "failed: AssertionError"] * 3


WITHOUT_NAMESPACES = """
from pathlib import Path
from lm_core.sandbox import linux
linux.unshare(linux.NEWUSER, "users")
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
from lm_core.sandbox import runner
from lm_core.errors import SandboxError
try:
    runner.require()
except SandboxError as error:
    print("refused:", error)
"""


def python_of(user: int | None, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with the sources alone, by an interpreter that the user can read."""
    interpreter = sys.executable if user is None else shutil.which("python3", path="/usr/bin")
    other = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    return subprocess.run(
        [interpreter or sys.executable, "-c", script],
        cwd="/", env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=120,
        **other,
    )  # fmt: skip


def test_without_namespaces_nothing_runs(sandbox):
    done = python_of(None, WITHOUT_NAMESPACES.replace("{user}", str(os.geteuid())))
    assert done.stdout.startswith("refused: sandbox: this machine does not give "), done.stderr
    assert done.stdout.count("\n") == 1 and "allow user namespaces" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_has_it_too(sandbox):
    known = python_of(65534, "import sys, lm_core.errors; print(sys.version_info >= (3, 11))")
    if known.stdout != "True\n":
        pytest.skip("no interpreter and sources that another user may read")
    script = (
        "from lm_core.sandbox import runner\nrunner.require()\n"
        "c = 'def check(f): raise ValueError(repr(f()))'\n"
        f"t = runner.Task(program={sandbox.who!r}, prompt='', test=c, entry_point='f')\n"
        "print(runner.run(t))"
    )
    done = python_of(65534, script)
    assert done.stdout == f"failed: {sandbox.nobody}\n", done.stderr


def test_a_supervisor_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(runner, "_MAIN", "raise SystemExit('broken')")
    task = Task(program="", prompt="", test="", entry_point="f")
    with pytest.raises(SandboxError, match=r"sandbox: its supervisor ended \(broken\)"):
        runner.run(task)
