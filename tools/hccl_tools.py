"""Writes the RANK_TABLE_FILE of this machine.

    python tools/hccl_tools.py --device_num "[0,8)" --server_ip 10.0.0.1

The end of a range is never part of it: [0,8), [0,8] and 8 are the devices 0 to 7. Addresses come
from hccn_tool, else from /etc/hccn.conf. On ModelArts the platform's own table is copied.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lm_core.checkpoint.atomic import new_file
from lm_core.cli import guarded
from lm_core.errors import ConfigError
from lm_core.parallel import ranktable
from lm_core.parallel.ranktable import Device, RankTable, Server

MODELARTS = Path("/user/config/jobstart_hccl.json")
HCCN_CONF = Path("/etc/hccn.conf")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; the exit status."""
    return guarded(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device_num", default="[0,8)", metavar="RANGE", help="devices; default [0,8)")
    add("--server_ip", default="", metavar="IP", help="address of this machine; default: found")
    add("--visible_devices", default="", metavar="N,N", help="the devices that the range counts")
    add("--simulate", action="store_true", help="make up device addresses; needs no device")
    add("--hccn_conf", type=Path, default=HCCN_CONF, metavar="FILE", help=f"default {HCCN_CONF}")
    add("--modelarts_file", type=Path, default=MODELARTS, metavar="FILE", help="its rank table")
    add("--output_dir", type=Path, default=Path(), metavar="D", help="default: this folder")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.modelarts_file.is_file() and not args.simulate:
        return _copy(args.modelarts_file, args.output_dir)
    numbers = ranktable.parse_range(args.device_num, "--device_num")
    devices = [_visible(args.visible_devices, numbers)[number] for number in numbers]
    name = args.server_ip or _own_address()
    _check_address(name, "--server_ip")
    addresses = _simulated(devices, name) if args.simulate else _addresses(devices, args.hccn_conf)
    server = Server(
        name,
        tuple(Device(device, addresses[device], rank) for rank, device in enumerate(devices)),
    )
    table = RankTable((server,))
    problems = [f"device_ip: {text}" for text in ranktable.problems(table)]
    if problems:
        raise ConfigError(*problems)
    return _write(table, args.output_dir / _name(server, numbers))


def _copy(source: Path, folder: Path) -> int:
    table = ranktable.read(source)
    print(f"{source}: the platform has made this rank table; it is copied", file=sys.stderr)
    name = f"hccl_{len(table.servers)}s_{table.size}p.json"
    if len(table.servers) == 1:
        name = _name(table.servers[0], [device.device_id for device in table.servers[0].devices])
    return _write(table, folder / name)


def _name(server: Server, numbers: Sequence[int]) -> str:
    ids = "".join(map(str, numbers))
    return f"hccl_{len(numbers)}p_{ids}_{server.server_id.replace('/', '_')}.json"


def _write(table: RankTable, path: Path) -> int:
    with new_file(path) as temporary:
        temporary.write_text(table.render(), encoding="utf-8")
    print(path)
    return 0


def _visible(text: str, numbers: range) -> dict[int, int]:
    """The device behind each number of the range."""
    if not text:
        return {number: number for number in numbers}
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"--visible_devices: is {text!r}; must be different numbers, like 0,1,2")
    if numbers.stop > len(words):
        raise ConfigError(
            f"--visible_devices: {len(words)} are visible; {ranktable.spell(numbers)} needs "
            f"{numbers.stop}; make --device_num smaller"
        )
    return dict(enumerate(map(int, words)))


def _own_address() -> str:
    """The address that this machine shows to others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address that nobody has
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise ConfigError(
            f"--server_ip: this machine's address was not found ({error}); give it"
        ) from error


def _check_address(text: str, where: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no address; must be like 10.0.0.1") from error


def _simulated(devices: Sequence[int], server: str) -> dict[int, str]:
    """Four networks, as on a real server; the server's last number makes them its own."""
    last = ipaddress.ip_address(server).packed[-1]
    return {
        device: f"192.{168 + device // 256}.{device % 4 * 64 + device // 4 % 64}.{last}"
        for device in devices
    }


def _addresses(devices: Sequence[int], conf: Path) -> dict[int, str]:
    configured = _configured(conf)
    found = {device: _asked(device) or configured.get(device, "") for device in devices}
    missing = [str(device) for device, address in found.items() if not address]
    if missing:
        raise ConfigError(
            f"device_ip: device(s) {', '.join(missing)} have none; hccn_tool and {conf} must know "
            f"it; set it with hccn_tool -i N -ip -s, or give --simulate where there is no device"
        )
    for address in found.values():
        _check_address(address, "device_ip")
    return found


def _asked(device: int) -> str:
    """What `hccn_tool` says ("ipaddr:192.168.1.1"); "" where it is not there or says no."""
    try:
        done = subprocess.run(
            ["hccn_tool", "-i", str(device), "-ip", "-g"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"^\s*ipaddr\s*:\s*(\S+)", done.stdout, re.MULTILINE)
    return match[1] if match and done.returncode == 0 else ""


def _configured(conf: Path) -> dict[int, str]:
    try:
        text = conf.read_text(encoding="utf-8")
    except OSError:
        return {}
    found = re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)", text, re.MULTILINE)
    return {int(device): address for device, address in found}


if __name__ == "__main__":
    sys.exit(main())
