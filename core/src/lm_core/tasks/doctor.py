"""`doctor`: what is installed, what is missing, what the machine has. Loads MindSpore elsewhere.

MindSpore is imported, and computes one sum, in a process of its own with a time limit: an
installation that is broken, or that hangs, is then a line of the report.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lm_core import __version__
from lm_core import spec as registry
from lm_core.errors import LmError
from lm_core.parallel import machine

PYTHONS = ((3, 11), (3, 12))
MINDSPORE = "2.10."
BUILDS = ("mindspore", "mindspore-gpu", "mindspore-ascend", "mindspore-dev")
"""Distributions that install files over each other under one name."""
EXTRAS = {
    "torch": ("torch", "reads PyTorch .bin files"),
    "hub": ("huggingface_hub", "downloads models by name"),
    "tensorboard": ("tensorboardX", "writes TensorBoard files"),
    "plot": ("matplotlib", "draws loss curves"),
    "serve": ("uvicorn", "answers requests over HTTP"),
}
"""Extra of lm-core -> (module, what it is for)."""
FEW_BYTES = 2 * 1024**3

PROBE = """
import json
import mindspore as ms
from lm_core.parallel import backend

total = (ms.Tensor([1.0, 2.0]) + 1.0).sum().asnumpy()
assert total == 5.0, f"1 + 1 + 2 + 1 is {total}"
print(json.dumps({"version": ms.__version__, "device": backend.device_target()}))
"""


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    state: Literal["ok", "note", "wrong"]
    what: str
    text: str


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb."""
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS",
        help="how long importing MindSpore may take (default: %(default)g)",
    )  # fmt: skip


def run(args: Namespace) -> int:
    """Prints the findings. Status 0 where everything can be used, 2 where something is wrong."""
    wrong = 0
    for finding in findings(args.timeout):
        wrong += finding.state == "wrong"
        print(f"{finding.state:<6} {finding.what:<14} {finding.text}", flush=True)
    print(f"{wrong} problem(s) to mend" if wrong else "ready")
    return 2 if wrong else 0


def findings(timeout: float) -> Iterator[Finding]:
    """Everything that is looked at, the slow part last."""
    yield _python()
    yield _numpy()
    yield from _packages()
    yield from _extras()
    yield from _machine()
    yield from _folders()
    yield _messages()
    yield from _builds()
    yield _mindspore(timeout)


def _python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] in PYTHONS:
        return Finding("ok", "python", text)
    wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Finding("wrong", "python", f"{text}; MindSpore needs {wanted}; make another environment")


def _numpy() -> Finding:
    problem = machine.numpy_problem()
    if problem:
        return Finding("wrong", "numpy", problem.partition(": ")[2])
    return Finding("ok", "numpy", str(machine.version("numpy")))


def _packages() -> Iterator[Finding]:
    yield Finding("ok", "lm-core", f"{__version__}, {Path(__file__).parents[1]}")
    try:
        models = registry.installed()
    except LmError as error:
        yield Finding("wrong", "models", "; ".join(error.problems))
        return
    if not models:
        yield Finding("note", "models", "none is installed; pip install lm-gpt2")
    for name, spec in models.items():
        version = machine.version(f"lm-{name}") or "not installed as a distribution"
        yield Finding("ok", f"lm-{name}", f"{version}, {len(spec.presets)} sizes")


def _extras() -> Iterator[Finding]:
    for extra, (module, purpose) in EXTRAS.items():
        if find_spec(module):
            yield Finding("ok", extra, f"{module} {purpose}")
        else:
            text = f"{module} {purpose}; is not installed: pip install 'lm-core[{extra}]'"
            yield Finding("note", extra, text)


def _machine() -> Iterator[Finding]:
    yield Finding("ok", "cpu", f"{machine.cores()} of {os.cpu_count()} cores, {platform.machine()}")
    free, total = machine.free_memory(), machine.memory()
    state: Literal["ok", "note"] = "ok" if free > FEW_BYTES else "note"
    yield Finding(state, "memory", f"{machine.size(free)} of {machine.size(total)} free")


def _folders() -> Iterator[Finding]:
    places = {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}
    for what, folder in places.items():
        free = shutil.disk_usage(folder).free
        text = f"{folder}: {machine.size(free)} free"
        if not machine.writable(folder):
            hint = "set TMPDIR" if what == "temporary" else "write elsewhere with --output_dir"
            state: Any = "wrong" if what == "temporary" else "note"
            yield Finding(state, what, f"{text}, cannot be written; {hint}")
        elif free < FEW_BYTES:
            yield Finding("note", what, f"{text}; checkpoints need more; make room")
        else:
            yield Finding("ok", what, text)


def _messages() -> Finding:
    name = "GLOG_v"  # lm_core sets it to 3 where it is not set
    level = os.environ.get(name, "")
    if level.isdigit() and int(level) >= 3:
        return Finding("ok", name, f"{level}: MindSpore reports errors only")
    text = f"{level!r}: MindSpore writes warnings all the time; unset it, or set it to 3"
    return Finding("note", name, text)


def _builds() -> Iterator[Finding]:
    found = [f"{name} {version}" for name in BUILDS if (version := machine.version(name))]
    if len(found) > 1:
        text = f"{', '.join(found)} overwrite each other; uninstall all, then install mindspore"
        yield Finding("wrong", "builds", text)


def _mindspore(timeout: float) -> Finding:
    """What a process finds that loads MindSpore."""
    if not find_spec("mindspore"):
        return Finding("wrong", "mindspore", "is not installed; pip install lm-core installs it")
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        text = f"did not load within {timeout:g} s; try again, or allow more with --timeout"
        return Finding("wrong", "mindspore", text)
    if done.returncode:
        last = (done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
        return Finding("wrong", "mindspore", f"does not work: {last}; install mindspore again")
    return _loaded(json.loads(done.stdout.splitlines()[-1]))


def _loaded(found: dict[str, str]) -> Finding:
    text = f"{found['version']}, computes on {found['device']}"
    if not found["version"].startswith(MINDSPORE):
        text += f"; tested with {MINDSPORE}x only: pip install 'mindspore=={MINDSPORE}*'"
        return Finding("note", "mindspore", text)
    if machine.has_ascend() and found["device"] != "Ascend":
        text += "; an Ascend card is there and not used: install CANN and source its set_env.sh"
        return Finding("note", "mindspore", text)
    return Finding("ok", "mindspore", text)
