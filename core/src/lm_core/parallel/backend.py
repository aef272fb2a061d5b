"""What the machine under us can do. Every choice by device is made here and nowhere else.

MindSpore's CPU back end has no bfloat16 matrix product and its float16 one is slower than float32,
so a CPU computes in float32 whatever the run file asks for (and says so once).
"""

from __future__ import annotations

from functools import cache

import mindspore as ms

from lm_core.log import notice_once

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
def setup(device_id: int = 0) -> None:
    """Selects the device and graph mode (PyNative is 3-4x slower), once a process."""
    # A CPU is what is used where nothing is set, and cannot be set once anything has been computed.
    if not on_cpu():
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
