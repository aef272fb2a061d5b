"""The commands and environments of a job's processes, and the line of msrun that does the same."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from lm_core import heartbeat
from lm_core.launch import words
from lm_core.launch.job import Job
from lm_core.parallel import machine

SCHEDULER = "from mindspore.communication import init; init()"
"""Where the workers meet. It needs nothing of a run, so nothing of a run can break it."""

MARK = "LM_LAUNCH"
"""Set for a worker and inherited by whatever it starts, which makes them all findable."""

TOPOLOGY_SECONDS = "600"


def verb(job: Job, again: bool = False) -> list[str]:
    """One process of the job.

    Args:
        job: what is started.
        again: it was started before and goes on from its newest checkpoint.
    """
    given = list(job.words)
    if again:
        given = words.with_value(given, "resume_training", "true")
    if job.size > 1 and words.value(given, "use_parallel") is None:
        given = [*given, "--use_parallel", "True"]
    return [sys.executable, "-m", f"lm_{job.model}.{job.verb}", *given]


def threads(job: Job) -> dict[str, str]:
    """An equal share of the cores for each process, where the user does not say otherwise."""
    if job.size == 1 or os.environ.get("OMP_NUM_THREADS"):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, machine.cores() // job.processes))}


def _common(job: Job, address: str, port: int, mark: str) -> dict[str, str]:
    # Without the rank table, which MindSpore would number the ranks anew from.
    inherited = {name: text for name, text in os.environ.items() if name != "RANK_TABLE_FILE"}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    found = inherited | {"PATH": path, "PYTHONUNBUFFERED": "1", MARK: mark} | threads(job)
    if job.size == 1:
        return found
    return found | {
        "MS_SCHED_HOST": address,
        "MS_SCHED_PORT": str(port),
        "MS_WORKER_NUM": str(job.size),
        "MS_TOPO_TIMEOUT": os.environ.get("MS_TOPO_TIMEOUT", TOPOLOGY_SECONDS),
        "RANK_SIZE": str(job.size),
    }


def worker_environment(job: Job, rank: int, address: str, port: int, mark: str) -> dict[str, str]:
    """What the process of a rank sees. MindSpore keeps ranks that are given as numbers."""
    index = rank - job.ranks.start
    found = _common(job, address, port, mark)
    found[heartbeat.VARIABLE] = str(Path(os.path.abspath(job.log(rank).parent)) / "heartbeat")
    if job.size == 1:
        return found
    return found | {
        "MS_ROLE": "MS_WORKER",
        "MS_NODE_ID": str(rank),
        "RANK_ID": str(rank),
        "DEVICE_ID": str(job.devices[index]),
    }


def scheduler(job: Job, address: str, port: int, mark: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the process where the workers meet."""
    environment = _common(job, address, port, mark) | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
    return [sys.executable, "-c", SCHEDULER], environment


def printed(job: Job, port: int) -> str:
    """A line for a shell that starts this machine's part of the job."""
    program = verb(job)
    if job.size == 1:
        return shlex.join(program)
    folder = Path(sys.executable).parent
    options = {
        "worker_num": job.size,
        "local_worker_num": job.processes,
        "master_addr": job.address,
        "master_port": port,
        "node_rank": job.machine,
        "log_dir": job.logs,
        "cluster_time_out": TOPOLOGY_SECONDS,
        "join": True,
    }
    environment = threads(job)
    if job.devices != tuple(range(job.processes)):
        # msrun counts devices from 0.
        environment["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, job.devices))
    settings = "".join(f" {name}={text}" for name, text in environment.items())
    # msrun starts the first `python` on PATH.
    return (
        f'env -u RANK_TABLE_FILE PATH={shlex.quote(str(folder))}:"$PATH"{settings} '
        + shlex.join([str(folder / "msrun"), *(f"--{key}={text}" for key, text in options.items())])
        + f" python {shlex.join(program[1:])}"
    )
