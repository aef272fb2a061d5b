"""RANK_TABLE_FILE: which devices of which servers a job has, and their ranks; ranges `[0,8)`.

The upper end of a range is never part of it, however it is closed: `[0,8]` and `[0,8)` are the
eight numbers 0 to 7. Users of Ascend have always written both and meant the same.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_core.errors import ConfigError

RANGE = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*[\])]")


def parse_range(text: str, where: str) -> range:
    """`[0,8)`, `[0,8]` and `8` are the numbers 0 to 7.

    Raises:
        ConfigError: it is something else, or holds no number.
    """
    match = RANGE.fullmatch(text.strip())
    bounds = (match[1], match[2]) if match else ("0", text.strip())
    if not bounds[1].isdecimal():
        raise ConfigError(f"{where}: {text!r} is no range; must be like [0,8), [0,8] or 8")
    found = range(int(bounds[0]), int(bounds[1]))
    if not found:
        raise ConfigError(f"{where}: {text} holds no number; the end must be above the start")
    return found


def spell(numbers: range) -> str:
    """range(0, 8) -> "[0,8)"."""
    return f"[{numbers.start},{numbers.stop})"


@dataclass(frozen=True, slots=True)
class Device:
    """One card: its number on its server, its address, its place in the job."""

    device_id: int
    device_ip: str
    rank_id: int


@dataclass(frozen=True, slots=True)
class Server:
    """One machine."""

    server_id: str
    devices: tuple[Device, ...]
    host_nic_ip: str = "reserve"

    @property
    def ranks(self) -> range:
        """The ranks of its devices, which follow each other."""
        first = self.devices[0].rank_id
        return range(first, first + len(self.devices))


@dataclass(frozen=True, slots=True)
class RankTable:
    """The servers in the order of their ranks."""

    servers: tuple[Server, ...]

    @property
    def size(self) -> int:
        """Number of devices, which is that of processes."""
        return sum(len(server.devices) for server in self.servers)

    def render(self) -> str:
        """The text of the file: one line for each device, every value a string."""
        servers = ",\n".join(map(_render_server, self.servers))
        return (
            f'{{\n    "version": "1.0",\n    "server_count": "{len(self.servers)}",\n'
            f'    "server_list": [\n{servers}\n    ],\n    "status": "completed"\n}}\n'
        )


def _render_server(server: Server) -> str:
    devices = ",\n".join(
        " " * 16
        + json.dumps(
            {
                "device_id": str(device.device_id),
                "device_ip": device.device_ip,
                "rank_id": str(device.rank_id),
            }
        )
        for device in server.devices
    )
    return (
        f'        {{\n            "server_id": {json.dumps(server.server_id)},\n'
        f'            "device": [\n{devices}\n            ],\n'
        f'            "host_nic_ip": {json.dumps(server.host_nic_ip)}\n        }}'
    )


def read(path: str | Path) -> RankTable:
    """Reads and checks a rank table.

    Raises:
        ConfigError: it is missing, is no rank table, or contradicts itself; every problem found.
    """
    table = RankTable(tuple(_servers(path, _load(path))))
    found = list(problems(table))
    if found:
        raise ConfigError(*(f"{path}: {text}" for text in found))
    # By rank, whatever the order in the file; a rank's place then says its server.
    servers = [
        replace(server, devices=tuple(sorted(server.devices, key=lambda device: device.rank_id)))
        for server in table.servers
    ]
    return RankTable(tuple(sorted(servers, key=lambda server: server.ranks.start)))


def _load(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; must be a rank table; make one with tools/hccl_tools.py"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); make the rank table again") from error
    if not isinstance(found, dict) or not isinstance(found.get("server_list"), list):
        raise ConfigError(
            f"{path}: has no server_list; must be a rank table of version 1.0; make it again with "
            f"tools/hccl_tools.py"
        )
    status = found.get("status", "completed")
    if status != "completed":
        raise ConfigError(f"{path}: status: is {status!r}; must be 'completed'; wait until it is")
    count = str(found.get("server_count", len(found["server_list"])))
    if count != str(len(found["server_list"])):
        raise ConfigError(
            f"{path}: server_count: is {count} but {len(found['server_list'])} are listed; "
            f"make the rank table again"
        )
    return found


def _servers(path: str | Path, table: dict[str, Any]) -> Iterator[Server]:
    for index, server in enumerate(table["server_list"]):
        try:
            devices = tuple(
                Device(_number(one["device_id"]), str(one["device_ip"]), _number(one["rank_id"]))
                for one in server["device"]
            )
            yield Server(
                str(server["server_id"]), devices, str(server.get("host_nic_ip", "reserve"))
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path}: server_list[{index}]: is not as it must be ({error!r}); a server has a "
                f"server_id and a list device of device_id, device_ip and rank_id"
            ) from error


def _number(value: object) -> int:
    text = str(value)
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no number")
    return int(text)


def problems(table: RankTable) -> Iterator[str]:
    """What contradicts itself, one text each."""
    if not table.servers or not all(server.devices for server in table.servers):
        yield "a server has no devices; must have at least one; make the rank table again"
        return
    for name in repeated(server.server_id for server in table.servers):
        yield f"server_id: {name} is there more than once; give each server its own address"
    for server in table.servers:
        yield from _device_problems(server)
    ranks = [device.rank_id for server in table.servers for device in server.devices]
    if sorted(ranks) != list(range(len(ranks))):
        text = ", ".join(map(str, sorted(ranks)))
        yield f"rank_id: are {text}; must be 0 to {len(ranks) - 1}, each once; make the table again"
        return
    for server in table.servers:
        own = sorted(device.rank_id for device in server.devices)
        if own != list(range(own[0], own[0] + len(own))):
            text = ", ".join(map(str, own))
            yield f"rank_id: server {server.server_id} has {text}; must follow each other"


def _device_problems(server: Server) -> Iterator[str]:
    name = server.server_id
    for number in repeated(device.device_id for device in server.devices):
        yield f"device_id: server {name} has {number} more than once; list each device once"
    for address in repeated(device.device_ip for device in server.devices if device.device_ip):
        yield f"device_ip: server {name} has {address} more than once; each device has its own"


def repeated(values: Iterable[Any]) -> list[Any]:
    """What is there more than once, in order of appearance."""
    return [value for value, count in Counter(values).items() if count > 1]


def shared_addresses(table: RankTable) -> list[str]:
    """Device addresses that more than one server has; real devices of one network do not."""
    return repeated(
        address
        for server in table.servers
        for address in {device.device_ip for device in server.devices if device.device_ip}
    )


def merged(tables: Sequence[RankTable]) -> RankTable:
    """One table of all servers, ordered by address, ranks counted anew from 0.

    The order of the tables has no effect.
    """
    servers = sorted(
        (server for table in tables for server in table.servers), key=lambda s: _order(s.server_id)
    )
    found, rank = [], 0
    for server in servers:
        devices = tuple(
            replace(device, rank_id=rank + index) for index, device in enumerate(server.devices)
        )
        found.append(replace(server, devices=devices))
        rank += len(devices)
    return RankTable(tuple(found))


def _order(name: str) -> tuple[int, int, str]:
    """Addresses by value, 9 before 10; other names behind them."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return (9, 0, name)
    return (address.version, int(address), name)
