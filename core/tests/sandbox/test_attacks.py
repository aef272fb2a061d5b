"""Hostile programs: contained, in time, and the host is as before."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from lm_core.sandbox import runner
from lm_core.sandbox.jail import Limits

pytestmark = pytest.mark.usefixtures("unchanged")

TRY = """
import os, sys
def tried(action, *arguments):
    try:
        return action(*arguments)
    except BaseException as error:
        return type(error).__name__
"""
CALL = (
    TRY
    + """
import ctypes
def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    done = getattr(libc, name)(*words)
    return done if done >= 0 else os.strerror(ctypes.get_errno())
"""
)


def test_a_fork_bomb_stops_at_the_limit_of_processes(sandbox):
    bomb = """
import os, time
def f():
    count = 0
    try:
        while True:
            if os.fork() == 0:
                while True:
                    time.sleep(60)
            count += 1
    except BlockingIOError:
        return count
"""
    assert 1 <= int(sandbox.saw(bomb)) <= 8
    wild = "import os\ndef f():\n    while True:\n        try:\n            os.fork()\n"
    wild += "        except OSError:\n            pass\n"
    start = time.monotonic()
    limits = Limits(seconds=20, wall_seconds=1.0)
    assert sandbox.judge(wild, limits=limits) == "timed out"
    assert time.monotonic() - start < 30


def test_threads_count_as_processes(sandbox):
    program = """
import threading, time
def f():
    count = 0
    try:
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            count += 1
    except RuntimeError:
        return count
"""
    assert 1 <= int(sandbox.saw(program)) <= 8


def test_no_network_neither_here_nor_outside(sandbox):
    server = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0lm-test-{os.getpid()}")
    abstract.listen()
    server.settimeout(0.1)
    abstract.settimeout(0.1)
    program = f"""
import socket
def f():
    found = []
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
        (socket.AF_INET, ("1.1.1.1", 53)),
        (socket.AF_UNIX, "\\0lm-test-{os.getpid()}"),
        (40, (2, 1)),
        (socket.AF_NETLINK, (0, 0)),
    ):
        try:
            with socket.socket(family) as found_socket:
                found_socket.connect(address)
            found.append("connected")
        except OSError as error:
            found.append(error.strerror)
    return found
"""
    said = sandbox.saw(program)
    unreachable = "Network is unreachable"
    refused = ["Connection refused", "Operation not permitted", "Operation not permitted"]
    assert said == repr([unreachable, unreachable, *refused])
    for listening in (server, abstract):
        with pytest.raises(TimeoutError):
            listening.accept()
        listening.close()


def test_nothing_of_the_host_can_be_read(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    places = [secret, Path.home() / ".bashrc", "/etc/shadow", "/etc/passwd", "/proc/self/maps"]
    places += ["/proc/1/environ", "/sys/kernel", "/var", "/dev/shm", runner.__file__, "/old"]
    program = f"{TRY}\ndef f():\n    return [tried(os.stat, p) for p in {[*map(str, places)]!r}]\n"
    assert sandbox.saw(program) == repr(["FileNotFoundError"] * len(places))
    above = (
        f"{TRY}\ndef f():\n    return tried(os.listdir, '/tmp/../../..'), tried(os.chroot, '.')\n"
    )
    root, changed = eval(sandbox.saw(above))
    assert {"home", "etc", "proc", "sys", "var", "mnt"}.isdisjoint(root) and "tmp" in root
    assert changed == "PermissionError"
    secret.unlink()


def test_installed_packages_are_not_there(sandbox):
    program = (
        "import importlib.util as u, os\ndef f():\n    return u.find_spec('numpy'), [d for d, "
    )
    program += "_, files in os.walk('/') if d.endswith('-packages') and files]\n"
    assert sandbox.saw(program) == "(None, [])"


def test_nothing_can_be_written_but_the_scratch(sandbox):
    program = f"""{TRY}
import sysconfig
def f():
    places = ["/x", "/usr/x", "/dev/x", "/lib/x", sysconfig.get_paths()["stdlib"] + "/x", "/tmp/x"]
    said = [tried(lambda p=p: open(p, "w").write("x")) for p in places]
    node = tried(os.mknod, "/tmp/n", 0o60600, 2049)
    return said, tried(os.mkdir, "/d"), tried(os.remove, os.__file__), node
"""
    written, made, removed, node = eval(sandbox.saw(program))
    assert written == ["OSError"] * 5 + [1]
    assert (made, removed, node) == ("OSError", "OSError", "PermissionError")


def test_the_scratch_is_small_and_cannot_be_executed(sandbox):
    program = f"""{TRY}
def f():
    total, files = 0, 0
    try:
        while True:
            with open(f"/tmp/{{files}}", "wb", 0) as file:
                files += 1
                while file.tell() < 4 << 20:
                    total += file.write(bytes(1 << 20))
    except OSError as error:
        said = error.strerror
    os.remove("/tmp/0")
    with open("/tmp/run", "w") as file:
        file.write("#!/bin/true")
    os.chmod("/tmp/run", 0o755)
    return total, said, tried(os.execv, "/tmp/run", ["run"])
"""
    total, said, executed = eval(sandbox.saw(program))
    assert 14 << 20 <= total <= 16 << 20
    assert (said, executed) == ("No space left on device", "PermissionError")


def test_environment_and_descriptors_do_not_come_along(sandbox, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    readable, writable = os.pipe()
    os.set_inheritable(readable, True)
    program = """
import os, sys
def f():
    there = []
    for number in range(4096):
        try:
            os.fstat(number)
            there.append(number)
        except OSError:
            pass
    return dict(os.environ), there, sys.stdin.read(), os.getpid(), os.getppid(), os.getuid()
"""
    assert sandbox.saw(program) == "({}, [0, 1, 2, 3, 4], '', 1, 0, 1000)"
    memory = """
import ctypes
def f():
    first = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    return bool(first) and first[0] is not None
"""
    assert sandbox.saw(memory) == "False"
    os.close(readable)
    os.close(writable)


def test_processes_outside_cannot_be_seen_or_killed(sandbox):
    program = f"""{TRY}
def f():
    pids = [{os.getpid()}, {os.getppid()}, 2, 0]
    return [tried(os.kill, pid, 0) for pid in pids[:3]], tried(os.kill, -1, 9)
"""
    seen, killed = eval(sandbox.saw(program))
    assert seen == ["ProcessLookupError"] * 3
    assert killed in (None, "ProcessLookupError")


def test_no_privileges_and_none_to_gain(sandbox):
    program = f"""{CALL}
def f():
    return [
        call("ptrace", 16, 1, 0, 0), call("mount", b"x", b"/tmp", b"tmpfs", 0, 0),
        call("umount2", b"/tmp", 2), call("unshare", 0x10000000), call("setns", 0, 0),
        call("memfd_create", b"x", 0), call("shmget", 0, 1 << 30, 0o1777),
        call("setuid", 0), call("sethostname", b"x", 1), call("personality", 0),
        call("clone", 0x10000011, 0, 0, 0, 0), call("syscall", 425, 8, 0),
        call("prctl", 39, 0, 0, 0, 0),
    ]
"""
    *denied, no_new_privileges = eval(sandbox.saw(program))
    allowed = {"Operation not permitted", "Invalid argument"}
    assert set(denied) <= allowed and denied.count("Operation not permitted") >= 11, denied
    assert no_new_privileges == 1
    assert sandbox.saw(sandbox.who) == sandbox.nobody


def test_memory_of_one_process_and_of_all(sandbox):
    one = "def f():\n    return len(bytearray(8 << 30))\n"
    assert sandbox.judge(one) == "failed: MemoryError"
    many = """
import os, time
def f():
    for _ in range(5):
        if os.fork() == 0:
            kept = bytearray(b"x") * (100 << 20)
            time.sleep(100)
    time.sleep(100)
"""
    limits = Limits(seconds=20, wall_seconds=60.0, memory=256 << 20)
    assert sandbox.judge(many, limits=limits) == "failed: more memory than allowed"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True: print('x' * 1000000)",
        "import signal\n    for n in range(1, 65):\n        try: signal.signal(n, signal.SIG_IGN)\n"
        "        except (OSError, ValueError): pass\n    while True: pass",
        "while True:\n        try:\n            while True: pass\n        except: pass",
    ],
)
def test_endless_work_ends_with_the_processor_time(sandbox, body):
    limits = Limits(seconds=1, wall_seconds=60.0)
    assert sandbox.judge(f"def f():\n    {body}\n", limits=limits) == "timed out"


def test_endless_sleep_ends_with_the_clock(sandbox):
    program = "import time\ndef f():\n    time.sleep(1000)\n"
    assert sandbox.judge(program, limits=Limits(wall_seconds=0.5)) == "timed out"


def test_daemons_end_with_their_program(sandbox):
    program = """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    os.wait()
    return 42
"""
    assert sandbox.judge(program) == "passed"


def test_a_killed_host_takes_everything_along(sandbox, tmp_path):
    """`kill -9` of who asked, while a program runs."""
    import subprocess
    import sys

    script = (
        "from lm_core.sandbox import runner\nfrom lm_core.sandbox.jail import Limits\n"
        "p = 'import time\\ndef f():\\n    time.sleep(1000)\\n'\n"
        "t = runner.Task(program=p, prompt='', test='def check(f): f()', entry_point='f')\n"
        "runner.run(t, Limits(wall_seconds=500.0))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", script])

    def below() -> list[str]:
        found = []
        for folder in Path("/proc").iterdir():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(words) > 2 and words[-2] == str(host.pid).encode():
                found.append(folder.name)
        return found

    until = time.monotonic() + 60
    while len(below()) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(below()) == 3  # supervisor, judge, program
    host.kill()
    host.wait()
    while below() and time.monotonic() < until:
        time.sleep(0.05)
    assert below() == []
