"""What the machine under us can do. Every choice by device is made here and nowhere else.

MindSpore's CPU back end has no bfloat16 matrix product and its float16 one is slower than float32,
so a CPU computes in float32 whatever the run file asks for (and says so once).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache

import mindspore as ms
from mindspore import communication

from lm_core.errors import ConfigError
from lm_core.log import notice_once
from lm_core.parallel.machine import job_size

CALL_DEPTH = 10_000
"""Calls within calls that a graph may hold. A training step makes about 40 for each layer, and with
24 layers more than the 1,000 that MindSpore allows by itself."""

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


@cache
def device_target() -> str:
    """The device that this process computes on: "Ascend" where one is present, else "CPU"."""
    return str(ms.get_context("device_target"))


def on_cpu() -> bool:
    """True where the fused accelerator kernels are missing."""
    return device_target() == "CPU"


@cache
def setup(device_id: int | None = None) -> None:
    """Selects graph mode (PyNative is 3-4x slower) and the device, once a process.

    Args:
        device_id: of several; None: the one that is selected already, or the first.
    """
    # A CPU is what is used where nothing is set, and cannot be set once anything has been computed.
    if not on_cpu() and device_id is not None:
        ms.set_device(device_target(), device_id)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(CALL_DEPTH)


def compute_dtype(name: str) -> ms.Type:
    """The type that matrix products run in when the run file says `name`."""
    if on_cpu() and name != "float32":
        notice_once(
            f"compute_dtype={name}",
            f"compute_dtype: {name} has no fast CPU kernels in MindSpore; computing in float32",
        )
        return ms.float32
    return DTYPES[name]


@cache
def join() -> tuple[int, int]:
    """Joins the other processes of the job. Returns `(rank, number of processes)`.

    Raises:
        ConfigError: there are none, or they cannot be reached.
    """
    if job_size() == 1:
        raise ConfigError(
            "use_parallel: True needs several processes and this one is alone; start them with "
            "launch.sh (NPROC=4 bash packages/MODEL/launch.sh ...) or msrun, or set use_parallel: "
            "False"
        )
    setup(_own_device())
    communication.init("mccl" if on_cpu() else "hccl")
    return communication.get_rank(), communication.get_group_size()


def _own_device() -> int | None:
    """The device of this process among those of its machine; None: MindSpore chooses by rank."""
    number = os.environ.get("DEVICE_ID", "")
    return int(number) if number.isdigit() else None


_groups: set[str] = set()


def make_groups(groups: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Makes groups of ranks, each once; all ranks that are in one must call it.

    Args:
        groups: name and ranks (`ParallelContext.groups`).
    """
    for name, ranks in groups:
        if name not in _groups:
            communication.create_group(name, list(ranks))
            _groups.add(name)
