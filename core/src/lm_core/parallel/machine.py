"""What the machine under us has: cores, memory, space, found without loading MindSpore."""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from pathlib import Path

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a number."""
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def version(distribution: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numpy_problem() -> str:
    """What is wrong with the installed NumPy, "" for nothing.

    MindSpore 2.10 is built against NumPy 1; under NumPy 2 it fails late and obscurely.
    """
    found = version("numpy")
    if found and int(found.partition(".")[0]) < 2:
        return ""
    state = f"{found} is installed" if found else "is missing"
    return f"numpy: {state}; MindSpore needs 1.26; run pip install 'numpy>=1.26,<2'"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of RAM, or of the share that a container was given."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits()])


def _limits() -> list[int]:
    found = []
    for name in _LIMITS:
        try:
            text = (_CGROUP / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return found


def free_memory() -> int:
    """Bytes of RAM that programs could still take; all of it where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return memory()
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return min(memory(), int(found[0][1]) * 1024) if found else memory()


def job_size() -> int:
    """The processes of the job that this one was started in, by msrun or otherwise; 1 if alone."""
    number = os.environ.get("MS_WORKER_NUM") or os.environ.get("RANK_SIZE") or "1"
    return int(number) if number.isdigit() else 1


def job_rank() -> int:
    """The number that this process was given in its job; 0 if it was given none."""
    number = os.environ.get("RANK_ID", "")
    return int(number) if number.isdigit() else 0


def has_ascend() -> bool:
    """Whether the driver of an Ascend card shows one."""
    return any(Path("/dev").glob("davinci[0-9]*"))


def is_meant_for_ascend(target: str) -> bool:
    """Whether a run with this `context.device_target` computes, or should, on an Ascend card."""
    return target == "Ascend" or (target == "auto" and has_ascend())


def width(target: str, dtype: str) -> int:
    """Bytes of an activation: a CPU computes in float32 whatever is asked for."""
    return BYTES[dtype] if is_meant_for_ascend(target) else 4


def writable(folder: Path) -> bool:
    """Whether a file can be made in a folder; tried, because permission bits do not tell all."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def size(count: float) -> str:
    """Bytes for people: 4563402752 -> "4.25 GiB"."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(count) >= 1024**power:
            number = count / 1024**power
            return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:,.0f} {unit}"
    return f"{count:.0f} B"
