"""Namespaces, a root of its own, and no privileges: what a process does to itself, in this order.

`enter` in the supervisor; `build_root`, `below`, `close_down` in the judge; `mount_scratch`,
`close_down` in the program.

Who a program is: an ordinary user stays himself outside and has no name inside; root becomes
`nobody`, because the kernel does not count root's processes, and because a mistake in the mounts
would then still meet the permissions of files.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lm_core.sandbox import calls, linux

INSIDE = 1000
"""The user and group that programs are, inside."""
NOBODY = 65534
_OWN = linux.NEWUSER | linux.NEWPID | linux.NEWNET | linux.NEWIPC | linux.NEWUTS
_FLAGS = linux.NOSUID | linux.NODEV | linux.NOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PACKAGES = ("site-packages", "dist-packages")
_OPEN_FILES = 64
_OLD, _SCRATCH = "/old", ("/tmp", "/var/tmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of the processor, for each process of a program.
        wall_seconds: from its start to the end of the test.
        memory: bytes, of each process (address space) and of all together (resident).
        processes: processes and threads at once.
        scratch: bytes of files in `/tmp`.
    """

    seconds: int = 3
    wall_seconds: float = 9.0
    memory: int = 1 << 30
    processes: int = 8
    scratch: int = 16 << 20


def enter() -> None:
    """Enters namespaces of its own as their root; the next child is the first process in them."""
    linux.machine()
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _enter_as_root()
        return
    _unshare()
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INSIDE} {user} 1")
    _write("/proc/self/gid_map", f"{INSIDE} {group} 1")


def _unshare() -> None:
    linux.unshare(_OWN, "namespaces for users, processes, network and messages")


def _enter_as_root() -> None:
    """With two users inside, root and nobody, which only a process that stays outside may give."""
    entered, enter_now = os.pipe()
    problem, report = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(enter_now)
        os.read(entered, 1)  # until the other end is closed
        try:
            for kind in ("uid", "gid"):
                _write(f"/proc/{os.getppid()}/{kind}_map", f"0 0 1\n{INSIDE} {NOBODY} 1")
        except linux.RefusalError as error:
            os.write(report, str(error).encode())
        finally:
            os._exit(0)
    os.close(report)
    try:
        _unshare()
    finally:
        os.close(enter_now)
        said = os.read(problem, 4096).decode()
        os.waitpid(helper, 0)
        os.close(entered)
        os.close(problem)
    if said:
        raise linux.RefusalError(said)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise linux.refuse(
            "users of its own", f"{path}: {os.strerror(error.errno or 0)}"
        ) from error


def needed() -> list[tuple[str, str]]:
    """The folders that the interpreter reads from: its library, and those of shared libraries.

    Returns:
        (where it is, where the interpreter looks for it), which differ where links lead there.
    """
    paths = sysconfig.get_paths()
    found = {paths["stdlib"], paths["platstdlib"]}
    found |= {path for path in sys.path if path.endswith("lib-dynload")}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if re.search(r"\.so[.\d]*$", path):
            found.add(os.path.dirname(path))
    found |= {os.path.realpath(path) for path in found}
    known = sorted(path for path in found if os.path.isdir(path))
    return [
        (os.path.realpath(path), path)
        for path in known
        if not any(path.startswith(other + "/") for other in known)
    ]


def build_root(folders: list[tuple[str, str]]) -> None:
    """Leaves the files of the host: an empty root with what the interpreter needs, read only."""
    linux.unshare(linux.NEWNS, "a namespace for mounts")
    linux.mount(None, "/", None, linux.REC | linux.PRIVATE)
    linux.mount("root", "/tmp", "tmpfs", _FLAGS, "size=1m,nr_inodes=1024,mode=755")
    os.mkdir("/tmp" + _OLD)
    linux.pivot("/tmp", "/tmp" + _OLD)
    os.chdir("/")
    os.mkdir(_SCRATCH[0])
    for source, target in folders:
        os.makedirs(target, exist_ok=True)
        linux.bind_read_only(_OLD + source, target)
    _hide_packages(target for _, target in folders)
    if os.listdir(_SCRATCH[0]):
        os.makedirs(_SCRATCH[1])
    for name in ("lib", "lib32", "lib64"):
        if os.path.islink(f"{_OLD}/{name}") and not os.path.exists(f"/{name}"):
            os.symlink(os.readlink(f"{_OLD}/{name}"), f"/{name}")
    os.mkdir("/dev")
    for name in _DEVICES:
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        linux.mount(f"{_OLD}/dev/{name}", f"/dev/{name}", None, linux.BIND)
    linux.detach(_OLD)
    os.rmdir(_OLD)
    linux.mount(None, "/", None, linux.REMOUNT | linux.BIND | linux.RDONLY | _FLAGS)


def mount_scratch(size: int) -> None:
    """A folder to write to, as the working directory, which the judge does not see.

    It is `/tmp`, or `/var/tmp` for an interpreter that itself lies below `/tmp`.
    """
    linux.unshare(linux.NEWNS, "a namespace for the scratch")
    place = next(path for path in _SCRATCH if not os.listdir(path))
    owned = f"size={size},nr_inodes=4096,mode=700,uid={INSIDE},gid={INSIDE}"
    linux.mount("scratch", place, "tmpfs", _FLAGS, owned)
    os.chdir(place)


def _hide_packages(folders: Iterable[str]) -> None:
    """Packages that somebody installed lie in the library's folder and are not part of it."""
    stdlib = sysconfig.get_paths()["stdlib"]
    places = {stdlib, *(str(path) for folder in folders for path in Path(folder).glob("python*"))}
    for folder in (os.path.join(place, name) for place in places for name in _PACKAGES):
        if os.path.isdir(folder):
            flags = _FLAGS | linux.RDONLY
            linux.mount("empty", folder, "tmpfs", flags, "size=4k,nr_inodes=1,mode=755")


def below() -> None:
    """Makes the next child the first process of a namespace of its own."""
    linux.unshare(linux.NEWPID, "a namespace for the processes of a program")


def close_down(limits: Limits) -> None:
    """Becomes nobody, for ever."""
    linux.bound_capabilities()
    others = 3  # that the kernel counts: supervisor, judge, and the program itself
    if os.geteuid() == 0:
        os.setgroups([])
        others = 2  # the supervisor is another user
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)
    linux.give_up_privileges()
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_NPROC, limits.processes + others),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, limits.scratch),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (wanted, wanted))
    calls.forbid()
