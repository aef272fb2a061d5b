"""tools/hccl_tools.py and tools/merge_hccl.py, with the samples of Ascend's documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"

ONE_SERVER = """{
    "version": "1.0",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "10.0.0.7",
            "device": [
                {"device_id": "0","device_ip": "192.1.27.6","rank_id": "0"},
                {"device_id": "1","device_ip": "192.2.27.6","rank_id": "1"},
                {"device_id": "2","device_ip": "192.3.27.6","rank_id": "2"},
                {"device_id": "3","device_ip": "192.4.27.6","rank_id": "3"},
                {"device_id": "4","device_ip": "192.1.27.7","rank_id": "4"},
                {"device_id": "5","device_ip": "192.2.27.7","rank_id": "5"},
                {"device_id": "6","device_ip": "192.3.27.7","rank_id": "6"},
                {"device_id": "7","device_ip": "192.4.27.7","rank_id": "7"}],
             "host_nic_ip": "reserve"
        }
    ],
    "status": "completed"
}
"""
CONF = "".join(
    f"address_{device}=192.{device % 4 + 1}.27.{6 + device // 4}\nnetmask_{device}=255.255.0.0\n"
    for device in range(8)
)
HCCN_TOOL = """#!/bin/sh
[ "$1 $3 $4" = "-i -ip -g" ] || exit 9
[ "$2" -lt 12 ] || exit 1
echo "ipaddr:10.9.0.$2"
echo "netmask:255.255.0.0"
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a tool in an empty folder on a machine without devices."""
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *words: object, status: int = 0, path: str = ""):
        done = subprocess.run(
            [sys.executable, str(TOOLS / f"{tool}.py"), *map(str, words)],
            capture_output=True, text=True, timeout=60,
            env={**os.environ, "PATH": os.pathsep.join([path, os.environ["PATH"]])},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "hccn.conf"
    path.write_text(CONF)
    return path


def hccl(call, *words: object, **settings):
    return call("hccl_tools", "--modelarts_file", "nowhere", *words, **settings)


@pytest.mark.parametrize("devices", ["[0,8)", "[0,8]", "8", "[ 0 , 8 )"])
def test_one_server_as_documented(call, conf, devices):
    out = hccl(call, "--device_num", devices, "--server_ip", "10.0.0.7", "--hccn_conf", conf)
    assert out == "hccl_8p_01234567_10.0.0.7.json\n"
    assert json.loads(Path(out.strip()).read_text()) == json.loads(ONE_SERVER)
    assert [path.name for path in Path().glob("*hccl*")] == [out.strip()]


def test_a_later_part_of_many_devices(call, tmp_path):
    """Numbers of two digits, across 4 and 8; hccn_tool comes before the file."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/hccn_tool").write_text(HCCN_TOOL)
    (tmp_path / "bin/hccn_tool").chmod(0o755)
    (tmp_path / "conf").write_text("address_9=1.1.1.1\naddress_12=10.9.1.12\n")
    words = ("--device_num", "[9,13)", "--server_ip", "10.0.0.7", "--hccn_conf", "conf")
    out = hccl(call, *words, path=str(tmp_path / "bin"))
    assert out == "hccl_4p_9101112_10.0.0.7.json\n"
    devices = json.loads(Path(out.strip()).read_text())["server_list"][0]["device"]
    assert devices == [
        {"device_id": "9", "device_ip": "10.9.0.9", "rank_id": "0"},
        {"device_id": "10", "device_ip": "10.9.0.10", "rank_id": "1"},
        {"device_id": "11", "device_ip": "10.9.0.11", "rank_id": "2"},
        {"device_id": "12", "device_ip": "10.9.1.12", "rank_id": "3"},
    ]


def test_visible_devices_are_what_the_range_counts(call, conf):
    words = ("--visible_devices", "3,5,7", "--hccn_conf", conf, "--server_ip", "10.0.0.7")
    out = hccl(call, "--device_num", "[1,3)", *words)
    devices = json.loads(Path(out.strip()).read_text())["server_list"][0]["device"]
    assert [device["device_id"] for device in devices] == ["5", "7"]
    assert "--visible_devices: 3 are visible" in hccl(call, *words, status=2)


def test_simulated_servers_do_not_share_addresses(call):
    for number in (1, 2):
        hccl(call, "--simulate", "--device_num", "[0,64)", "--server_ip", f"10.0.0.{number}")
    done = call("merge_hccl", *Path().glob("hccl_64p*.json"))
    table = json.loads(Path(done.strip()).read_text())
    addresses = [one["device_ip"] for s in table["server_list"] for one in s["device"]]
    assert len(set(addresses)) == 128


def test_the_own_address_is_found(call):
    out = hccl(call, "--simulate", "--device_num", "1")
    (server,) = json.loads(Path(out.strip()).read_text())["server_list"]
    assert server["server_id"].count(".") == 3


def test_the_platforms_table_is_copied(call):
    Path("given.json").write_text(ONE_SERVER)
    out = call("hccl_tools", "--modelarts_file", "given.json", "--output_dir", "tables")
    assert out == "tables/hccl_8p_01234567_10.0.0.7.json\n"
    assert json.loads(Path(out.strip()).read_text()) == json.loads(ONE_SERVER)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device_num", "0-8"], "error: --device_num: '0-8' is no range"),
        (["--device_num", "[8,8)"], "holds no number"),
        (["--server_ip", "here"], "error: --server_ip: 'here' is no address"),
        (["--device_num", "[0,9)", "--hccn_conf", "hccn.conf"], "device(s) 8 have none"),
        (["--visible_devices", "1,1"], "error: --visible_devices: is '1,1'"),
        (["--devices", "8"], "unrecognized arguments"),
    ],
)
def test_wrong_words(call, conf, words, says):
    text = hccl(call, *words, status=2)
    assert says in text and not list(Path().glob("hccl_*"))


def test_both_explain_themselves(call):
    assert "never part of it" in call("hccl_tools", "--help")
    assert "whatever order" in call("merge_hccl", "--help")


def write_server(name: str, devices: int = 2, **changes: object) -> str:
    table = json.loads(ONE_SERVER)
    server = table["server_list"][0] | {"server_id": name}
    server["device"] = [one.copy() for one in server["device"][:devices]]
    table["server_list"] = [server]
    for key, value in changes.items():
        server["device"][-1][key] = value
    path = f"hccl_{devices}p_{name}.json"
    Path(path).write_text(json.dumps(table))
    return path


def test_merged_by_address_in_any_order(call):
    files = [write_server(f"10.0.0.{number}") for number in (10, 9, 100)]
    written = []
    for order in (files, files[::-1], [*files, "hccl_3s_6p.json"]):
        assert call("merge_hccl", *order) == "hccl_3s_6p.json\n"
        written.append(Path("hccl_3s_6p.json").read_text())
    assert len(set(written)) == 1
    table = json.loads(written[0])
    assert [table[key] for key in ("version", "server_count", "status")] == [
        "1.0",
        "3",
        "completed",
    ]
    servers = [server["server_id"] for server in table["server_list"]]
    assert servers == ["10.0.0.9", "10.0.0.10", "10.0.0.100"]
    ranks = [[one["rank_id"] for one in server["device"]] for server in table["server_list"]]
    assert ranks == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_two_servers_as_documented_are_warned_about(call):
    """The sample of the documents gives devices of both servers the same addresses."""
    files = [write_server(f"10.0.0.{number}") for number in (1, 2)]
    done = subprocess.run(
        [sys.executable, str(TOOLS / "merge_hccl.py"), *files], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "warning: device_ip: 192.1.27.6 is on more than one server" in done.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank_id": "2"}, "rank_id: are 0, 2; must be 0 to 1"),
        ({"rank_id": "0"}, "rank_id: are 0, 0"),
        ({"rank_id": "x"}, "server_list[0]: is not as it must be"),
        ({"device_id": "0"}, "device_id: server 10.0.0.2 has 0 more than once"),
        ({"device_ip": "192.1.27.6"}, "device_ip: server 10.0.0.2 has 192.1.27.6 more than once"),
    ],
)
def test_contradictions_are_told(call, changes, says):
    files = [write_server("10.0.0.1"), write_server("10.0.0.2", **changes)]
    text = call("merge_hccl", *files, status=2)
    assert says in text and text.startswith("error: hccl_2p_10.0.0.2.json: ")
    assert not Path("hccl_2s_4p.json").exists()


def test_what_cannot_be_merged(call):
    own = write_server("10.0.0.1")
    Path("copy.json").write_text(Path(own).read_text())
    assert "server_id: 10.0.0.1 is there more than once" in call(
        "merge_hccl", own, "copy.json", status=2
    )
    Path("text.json").write_text("{")
    Path("list.json").write_text("[]")
    text = call("merge_hccl", "none.json", "text.json", "list.json", status=2)
    for line in ("none.json: No such file", "text.json: is not JSON", "list.json: has no server"):
        assert f"error: {line}" in text
    assert "none is left to merge" in call("merge_hccl", "hccl_2s_16p.json", status=2)
    for change in ({"status": "initializing"}, {"server_count": "3"}):
        Path("changed.json").write_text(json.dumps(json.loads(ONE_SERVER) | change))
        assert next(iter(change)) in call("merge_hccl", "changed.json", status=2)


def test_no_tool_loads_mindspore():
    script = "import sys, hccl_tools, merge_hccl; assert 'mindspore' not in sys.modules"
    path = os.pathsep.join([str(TOOLS), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=True
    )
