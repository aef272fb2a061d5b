"""`python -m lm_core.launch MODEL VERB ...`, which is what a package's `launch.sh` runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lm_core.cli import guarded
from lm_core.errors import ConfigError
from lm_core.launch import commands, supervise
from lm_core.launch.job import Job, free_port, read

USAGE = """\
usage: [NPROC=N] [NNODES=M NODE_RANK=K MASTER_ADDR=HOST MASTER_PORT=PORT] launch.sh VERB [...]
       RANK_TABLE_FILE=FILE launch.sh [0,8] VERB [...]

Starts VERB with the flags behind it on one or many processes and machines.

  NPROC            processes on this machine, 1
  NNODES           machines, 1
  NODE_RANK        number of this machine, 0
  MASTER_ADDR      address of machine 0, 127.0.0.1
  MASTER_PORT      a port that is free there; needed for several machines
  RANK_TABLE_FILE  says all this together with a range of ranks before or behind the words
  DRY_RUN=1        print the command and start nothing
  MAX_RESTARTS     start training again after a death or a hang, so many times, 0
  HANG_SECONDS     what shows no life for so long hangs, 1800; 0: never
  START_SECONDS    the same until the first step is done, 3600
  STOP_SECONDS     what workers have to save their state after Ctrl-C, 120"""


def main(given: Sequence[str]) -> int:
    """Runs a command line; the exit status."""
    return guarded(lambda: _launch(list(given)))


def _launch(given: list[str]) -> int:
    if not given:
        raise ConfigError("model: is missing; start packages/NAME/launch.sh VERB")
    if given[1:2] in ([], ["-h"], ["--help"]):
        print(USAGE)
        return 0
    job = read(given[0], given[1:], os.environ)
    if job.dry_run:
        print(commands.printed(job, job.port or free_port()))
        return 0
    if (job.size == 1 and not job.watched) or {"-h", "--help"} & set(job.words):
        _become(job)
    return supervise.run(job)


def _become(job: Job) -> None:
    """Runs a single process in the place of this one, so that signals and output are its own."""
    program = [sys.executable, "-m", f"lm_{job.model}.{job.verb}", *job.words]
    sys.stdout.flush()
    os.execv(program[0], program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
