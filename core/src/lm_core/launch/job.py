"""What is to be started: environment variables, a rank table, and the words after the verb."""

from __future__ import annotations

import ipaddress
import socket
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lm_core.cli import VERBS
from lm_core.config.flags import str2bool
from lm_core.errors import ConfigError
from lm_core.launch import words as line
from lm_core.parallel import ranktable

TRAINING = ("pretrain", "finetune")
INTERACTIVE = ("chat",)
"""Verbs that read what the user types, in rank 0, and have nothing to save when they are ended."""
SEVERAL = (*TRAINING, *INTERACTIVE, "evaluate", "predict", "export")
"""Verbs that can share their work among processes."""

HANG_SECONDS = 1800.0
START_SECONDS = 3600.0
STOP_SECONDS = 120.0
MAX_PROCESSES = 4096
MAX_RESTARTS = 10_000
LAST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One machine's part of a job.

    Attributes:
        words: what the verb gets.
        processes: on this machine, and on each of the others.
        machine: the number of this one; global rank = machine * processes + local index.
        port: of the scheduler, of a restart the next one; 0 to choose a free one each time.
        devices: the device of each process here.
        hang_seconds: a worker that shows no life for so long hangs; 0: never.
        start_seconds: the same before its first sign of life, when graphs compile.
        stop_seconds: what workers have to save their state when asked to stop.
        watched: somebody set HANG_SECONDS.
        output: the folder of the run.
    """

    model: str
    verb: str
    words: tuple[str, ...] = ()
    processes: int = 1
    machines: int = 1
    machine: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    devices: tuple[int, ...] = (0,)
    restarts: int = 0
    hang_seconds: float = HANG_SECONDS
    start_seconds: float = START_SECONDS
    stop_seconds: float = STOP_SECONDS
    watched: bool = False
    output: Path = Path("output")
    dry_run: bool = False

    @property
    def size(self) -> int:
        """Processes on all machines."""
        return self.processes * self.machines

    @property
    def supervised(self) -> bool:
        """Whether it needs us beside it: several processes, or one that may have to start again."""
        return self.size > 1 or (self.verb in TRAINING and (self.watched or self.restarts > 0))

    @property
    def ranks(self) -> range:
        """The ranks of this machine."""
        first = self.machine * self.processes
        return range(first, first + self.processes)

    @property
    def logs(self) -> Path:
        """The folder in which every rank has one."""
        return self.output / "log"

    def log(self, rank: int) -> Path:
        """What a rank writes."""
        return self.logs / f"rank_{rank}" / "launch.log"


def read(model: str, given: Sequence[str], environment: Mapping[str, str]) -> Job:
    """The job that a command line and its environment ask for.

    Args:
        model: the package, "gpt2".
        given: the verb and its flags; a range of ranks before or behind them.
        environment: NPROC, NNODES, ... (packages/NAME/README.md).

    Raises:
        ConfigError: every problem found.
    """
    settings = _Settings(environment)
    rest, ranks = _take_range(settings, list(given))
    verb = _verb(settings, model, rest)
    place = _place(settings, ranks)
    job = Job(
        model=model,
        verb=verb,
        words=tuple(rest[1:]),
        output=Path(_output(model, verb, rest[1:])),
        restarts=settings.integer("MAX_RESTARTS", 0, 0, MAX_RESTARTS),
        hang_seconds=settings.seconds("HANG_SECONDS", HANG_SECONDS),
        start_seconds=settings.seconds("START_SECONDS", START_SECONDS),
        stop_seconds=settings.seconds("STOP_SECONDS", STOP_SECONDS),
        watched=bool(settings.text("HANG_SECONDS")),
        dry_run=settings.truth("DRY_RUN"),
        **place,  # type: ignore[arg-type]
    )
    _check(settings, job)
    if settings.problems:
        raise ConfigError(*settings.problems)
    return job


class _Settings:
    """Environment variables, and what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self.environment.get(name, "").strip()

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name)
        if not text:
            return default
        if text.isdecimal() and low <= int(text) <= high:
            return int(text)
        self.problems.append(f"{name}: is {text!r}; must be a whole number from {low} to {high}")
        return default

    def seconds(self, name: str, default: float) -> float:
        try:
            found = float(self.text(name) or default)
        except ValueError:
            found = -1.0
        if 0 <= found < float("inf"):
            return found
        self.problems.append(f"{name}: is {self.text(name)!r}; must be a number of seconds, or 0")
        return default

    def truth(self, name: str) -> bool:
        try:
            return str2bool(self.text(name) or "0")
        except ArgumentTypeError as error:
            self.problems.append(f"{name}: {error}; set it to 1 or 0")
            return True


def _take_range(settings: _Settings, given: list[str]) -> tuple[list[str], range | None]:
    """The words without `[0,8]` in front of or behind them, and what it says."""
    is_range = [bool(ranktable.RANGE.fullmatch(word)) for word in given]
    at = [index for index in (0, len(given) - 1) if given and is_range[index]]
    if len(given) > 1 and at[-1:] == [len(given) - 1] and given[-2].startswith("--"):
        at.pop()  # the value of a flag
    if not at:
        return given, None
    if len(set(at)) > 1:
        settings.problems.append(
            f"ranks: {given[0]} and {given[-1]} are given; give one range of ranks"
        )
    rest = [word for index, word in enumerate(given) if index not in at]
    try:
        return rest, ranktable.parse_range(given[at[0]], "ranks")
    except ConfigError as error:
        settings.problems += error.problems
        return rest, None


def _verb(settings: _Settings, model: str, given: Sequence[str]) -> str:
    verb = given[0] if given else ""
    if find_spec(f"lm_{model}") is None:
        settings.problems.append(
            f"model: lm_{model} is not installed; `lm models` lists those that are"
        )
    elif verb not in VERBS or find_spec(f"lm_{model}.{verb}") is None:
        what = f"{verb!r} is no command of lm_{model}" if verb else "is missing"
        known = ", ".join(name for name in VERBS if find_spec(f"lm_{model}.{name}"))
        settings.problems.append(f"verb: {what}; give one of {known}")
    return verb


def _output(model: str, verb: str, given: Sequence[str]) -> str:
    """Where the run writes. What is wrong with a run file is for the verb to say.

    The flag of `export` is the folder of the export alone, which is replaced as a whole.
    """
    if verb == "export":
        given = [word for word in given if not word.startswith("--output_dir")]
    named, run = line.value(given, "output_dir"), line.value(given, "config")
    package = find_spec(f"lm_{model}")
    if named is None and run and package and package.origin:
        from lm_core.config.layers import read_layers

        with suppress(ConfigError):
            named = read_layers(run, (), [Path(package.origin).parent / "configs"]).values.get(
                "output_dir"
            )
    return str(named or "output")


def _place(settings: _Settings, ranks: range | None) -> dict[str, object]:
    """Which processes of how many run here, and where the first machine is."""
    path = settings.text("RANK_TABLE_FILE")
    if path:
        return _place_in_table(settings, path, ranks)
    if ranks is not None:
        settings.problems.append(
            f"ranks: {ranktable.spell(ranks)} is given, but no rank table; set RANK_TABLE_FILE, or "
            f"leave the range out and set NPROC"
        )
    processes = settings.integer("NPROC", 1, 1, MAX_PROCESSES)
    machines = settings.integer("NNODES", 1, 1, MAX_PROCESSES)
    address = settings.text("MASTER_ADDR")
    if machines > 1 and not address:
        settings.problems.append(
            f"MASTER_ADDR: is missing; {machines} machines need the address of machine 0"
        )
    return {
        "processes": processes,
        "machines": machines,
        "machine": settings.integer("NODE_RANK", 0, 0, machines - 1),
        "address": address or "127.0.0.1",
        "port": _port(settings, machines),
        "devices": tuple(range(processes)),
    }


def _port(settings: _Settings, machines: int) -> int:
    if machines > 1 and not settings.text("MASTER_PORT"):
        settings.problems.append(
            f"MASTER_PORT: is missing; {machines} machines need the same port, free on machine 0"
        )
    return settings.integer("MASTER_PORT", 0, 1, LAST_PORT)


def _place_in_table(settings: _Settings, path: str, ranks: range | None) -> dict[str, object]:
    try:
        table = ranktable.read(path)
    except ConfigError as error:
        settings.problems += error.problems
        return {}
    sizes = {len(server.devices) for server in table.servers}
    if len(sizes) > 1:
        text = ", ".join(str(len(server.devices)) for server in table.servers)
        settings.problems.append(
            f"RANK_TABLE_FILE: {path}: its servers have {text} devices; must be as many on each"
        )
        return {}
    machine = _machine(settings, table, ranks)
    server = table.servers[machine]
    found: dict[str, object] = {
        "processes": len(server.devices),
        "machines": len(table.servers),
        "machine": machine,
    }
    for name, value in zip(("NPROC", "NNODES", "NODE_RANK"), found.values(), strict=True):
        if settings.text(name) not in ("", str(value)):
            settings.problems.append(
                f"{name}: is {settings.text(name)} but {value} follows from the rank table "
                f"{path}; leave {name} out"
            )
    return found | {
        "address": settings.text("MASTER_ADDR") or table.servers[0].server_id,
        "port": _port(settings, len(table.servers)),
        "devices": tuple(device.device_id for device in server.devices),
    }


def _machine(settings: _Settings, table: ranktable.RankTable, ranks: range | None) -> int:
    """The server that a range, or NODE_RANK, means."""
    number = settings.text("NODE_RANK")
    if ranks is None and (len(table.servers) == 1 or number):
        return settings.integer("NODE_RANK", 0, 0, len(table.servers) - 1)
    found = [index for index, server in enumerate(table.servers) if server.ranks == ranks]
    if found:
        return found[0]
    known = ", ".join(ranktable.spell(server.ranks) for server in table.servers)
    what = f"{ranktable.spell(ranks)} are not those of one server" if ranks else "are missing"
    settings.problems.append(
        f"ranks: {what}; the servers of RANK_TABLE_FILE have {known}; give this machine's range"
    )
    return 0


def _check(settings: _Settings, job: Job) -> None:
    """What no single variable shows."""
    if job.size > 1 and job.verb in VERBS and job.verb not in SEVERAL:
        settings.problems.append(
            f"NPROC: {job.verb} runs in one process, not {job.size}; leave NPROC and NNODES out"
        )
    if job.restarts and job.verb in VERBS and job.verb not in TRAINING:
        settings.problems.append(
            f"MAX_RESTARTS: {job.verb} has nothing to go on from; only {' and '.join(TRAINING)} "
            f"start again; leave it out"
        )
    if job.port + job.restarts > LAST_PORT:
        settings.problems.append(
            f"MASTER_PORT: is {job.port}; each of {job.restarts} restarts takes the next one, so "
            f"it must be at most {LAST_PORT - job.restarts}"
        )


def resolve(address: str) -> str:
    """The number of a machine's name, which is what MindSpore takes.

    Raises:
        ConfigError: nobody knows the name.
    """
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"MASTER_ADDR: {address} cannot be resolved ({error}); must be the address of "
            f"machine 0; write it as a number"
        ) from error
    # Where a name has both, machines agree more often on version 4.
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])


def free_port(address: str = "") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises ConfigError if somebody listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_PORT: {port} cannot be used ({error.strerror}); must be free on machine "
                f"0; choose another, or leave it out on a single machine"
            ) from error
