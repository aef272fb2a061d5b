"""System calls that Python 3.11 lacks. Each failure says what the kernel does not give."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, REC, PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_LOCKED = {os.ST_NOSUID: NOSUID, os.ST_NODEV: NODEV, os.ST_NOEXEC: NOEXEC}
_LOCKED |= {os.ST_NOATIME: 0x400, os.ST_NODIRATIME: 0x800, os.ST_RELATIME: 0x200000}
_DETACH = 2

_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 22, 24, 38, 47
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)


class RefusalError(Exception):
    """The kernel does not give the protection; the text is one line for the user."""


def refuse(what: str, why: str) -> RefusalError:
    """The line that says which protection is missing."""
    return RefusalError(
        f"sandbox: this machine does not give {what} ({why}); programs of models are run with all "
        f"protections only; allow user namespaces here (sysctl user.max_user_namespaces, "
        f"kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; in a "
        f"container its seccomp profile), or score the samples on another machine"
    )


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise refuse(what, f"{os.strerror(number)}, {errno.errorcode.get(number, number)}")


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def machine() -> str:
    """The processor's name, one of those whose calls are known here."""
    name = platform.machine()
    if os.name != "posix" or os.uname().sysname != "Linux" or name not in _CAPSET:
        raise refuse("a known kernel", f"{platform.system()} {name}, not Linux x86_64 or aarch64")
    return name


def unshare(flags: int, what: str) -> None:
    """New namespaces for this process (for its children: NEWPID)."""
    _check(_libc.unshare(flags), what)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """The system call of that name; it also changes what is mounted."""
    made = _libc.mount(
        _text(source), _text(target), _text(kind), ctypes.c_ulong(flags), _text(data or None)
    )
    _check(made, f"the mount of {target}")


def bind_read_only(source: str, target: str) -> None:
    """Shows `source` at `target`, without writing, devices and set-uid.

    A namespace of our own may not take away flags that the mount has outside, so they are repeated.
    """
    mount(source, target, None, BIND)
    has = os.statvfs(target).f_flag
    kept = sum(flag for name, flag in _LOCKED.items() if has & name)
    mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | kept)


def pivot(new: str, old: str) -> None:
    """Makes `new` the root, the former root `old` below it."""
    _check(_libc.syscall(_PIVOT_ROOT[machine()], _text(new), _text(old)), "a root of its own")


def detach(target: str) -> None:
    """Takes a mount and all below it away."""
    _check(_libc.umount2(_text(target), _DETACH), f"a root without {target}")


def die_with_parent() -> None:
    """SIGKILL when the parent ends; to be repeated after a change of user."""
    _prctl(_PDEATHSIG, 9, what="the death signal")


def bound_capabilities() -> None:
    """None may be gained; to be called while there are some."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, *_words(capability)) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                return  # there are no more of them
            _check(-1, "capabilities to drop")


def give_up_privileges() -> None:
    """No capabilities, no set-uid, and no process of the same user may look inside."""
    _prctl(_CAP_AMBIENT, 4, what="capabilities to drop")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_CAPSET[machine()], header, (ctypes.c_uint32 * 6)()), "capset")
    _prctl(_NO_NEW_PRIVS, 1, what="no_new_privs")
    _prctl(_DUMPABLE, 0, what="processes that others cannot look into")


def install_filter(instructions: list[tuple[int, int, int, int]]) -> None:
    """A seccomp filter for this process and all that it starts, for ever.

    Args:
        instructions: (code, jump if true, jump if false, k) of classic BPF.
    """
    packed = b"".join(
        code.to_bytes(2, "little") + bytes((true, false)) + k.to_bytes(4, "little")
        for code, true, false, k in instructions
    )
    rules = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]

    program = Program(len(instructions), ctypes.addressof(rules))
    _prctl(_SECCOMP, 2, ctypes.addressof(program), what="seccomp filters")


def _prctl(option: int, *values: int, what: str) -> None:
    _check(_libc.prctl(option, *_words(*values)), what)


def _words(*values: int) -> list[ctypes.c_ulong]:
    """Four arguments; the kernel wants zeros where there are none."""
    return [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
