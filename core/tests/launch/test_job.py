"""What the launcher understands, and how it says what it does not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lm_core.errors import ConfigError
from lm_core.launch import commands, job, words
from lm_core.launch.__main__ import main
from lm_core.parallel import ranktable


@pytest.fixture
def table(tmp_path):
    """Three servers with two devices each; the devices are numbers 4 and 6."""
    servers = tuple(
        ranktable.Server(
            f"10.0.0.{9 + server}",
            tuple(
                ranktable.Device(4 + 2 * one, f"192.168.{one}.{server}", 2 * server + one)
                for one in range(2)
            ),
        )
        for server in range(3)
    )
    path = tmp_path / "hccl_3s_6p.json"
    path.write_text(ranktable.RankTable(servers).render())
    return path


def read(*given: str, **environment: object) -> job.Job:
    return job.read("gpt2", given, {name: str(text) for name, text in environment.items()})


def problems(*given: str, **environment: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*given, **environment)
    return list(caught.value.problems)


def test_one_process_by_itself():
    found = read("pretrain", "--config", "gpt2")
    assert (found.size, found.ranks, found.words) == (1, range(1), ("--config", "gpt2"))
    assert not found.supervised and not found.dry_run and found.restarts == 0
    assert read("pretrain", HANG_SECONDS=60).supervised
    assert read("finetune", MAX_RESTARTS=1).supervised
    assert not read("predict", HANG_SECONDS=60).supervised  # its input and output stay its own


def test_ranks_of_machines():
    where = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 8118}
    found = read("pretrain", NPROC=8, NNODES=3, NODE_RANK=2, **where)
    assert (found.size, found.ranks) == (24, range(16, 24))
    assert (found.address, found.port) == ("10.0.0.1", 8118)


@pytest.mark.parametrize("text", ["[2,4)", "[2,4]"])
@pytest.mark.parametrize("first", [True, False])
def test_a_table_and_a_range(table, text, first):
    given = [text, "finetune", "--seed", "1"] if first else ["finetune", "--seed", "1", text]
    found = read(*given, RANK_TABLE_FILE=table, MASTER_PORT=8118)
    assert (found.verb, found.words) == ("finetune", ("--seed", "1"))
    assert (found.processes, found.machines, found.machine) == (2, 3, 1)
    assert (found.ranks, found.devices, found.address) == (range(2, 4), (4, 6), "10.0.0.9")


def test_a_table_with_the_number_of_the_machine(table):
    found = read("pretrain", RANK_TABLE_FILE=table, NODE_RANK=2, NPROC=2, MASTER_PORT=8118)
    assert found.ranks == range(4, 6)
    (text,) = problems("pretrain", RANK_TABLE_FILE=table, MASTER_PORT=1)
    assert "[0,2), [2,4), [4,6)" in text and "are missing" in text


@pytest.mark.parametrize(
    ("given", "environment", "says"),
    [
        (["[0,4)", "pretrain"], {}, "ranks: [0,4) are not those of one server; the servers"),
        (["[1,3)", "pretrain"], {}, "ranks: [1,3) are not those of one server"),
        (["[3,3]", "pretrain"], {"NODE_RANK": 1}, "ranks: [3,3] holds no number"),
        (["[0,2)", "pretrain", "[2,4)"], {}, "ranks: [0,2) and [2,4) are given"),
        (["[2,4)", "pretrain"], {"NPROC": 8}, "NPROC: is 8 but 2 follows from the rank table"),
        (["[2,4)", "pretrain"], {"NNODES": 2}, "NNODES: is 2 but 3 follows"),
        (["[2,4)", "pretrain"], {"NODE_RANK": 0}, "NODE_RANK: is 0 but 1 follows"),
        (["[2,4)", "pretrain"], {"MASTER_PORT": ""}, "MASTER_PORT: is missing; 3 machines"),
    ],
)
def test_contradictions_with_a_table(table, given, environment, says):
    settings = {"RANK_TABLE_FILE": table, "MASTER_PORT": 8118} | environment
    (text,) = problems(*given, **settings)
    assert text.startswith(says)


def test_servers_must_be_alike(table):
    text = json.loads(table.read_text())
    text["server_list"][2]["device"].pop()
    table.write_text(json.dumps(text))
    (text,) = problems("[0,2)", "pretrain", RANK_TABLE_FILE=table, MASTER_PORT=8118)
    assert "its servers have 2, 2, 1 devices" in text
    assert "nowhere: No such file" in problems("[0,2)", "pretrain", RANK_TABLE_FILE="nowhere")[0]


def test_a_range_without_a_table():
    (text,) = problems("pretrain", "[0,8]")
    assert text.startswith("ranks: [0,8) is given, but no rank table; set RANK_TABLE_FILE")
    assert read("pretrain", "--key", "[0,8]").words == ("--key", "[0,8]")


def test_all_problems_at_once():
    found = problems(
        "pretrian", NPROC="many", NNODES=2, NODE_RANK=2, MAX_RESTARTS=-1, HANG_SECONDS="long",
        STOP_SECONDS="nan", DRY_RUN="maybe",
    )  # fmt: skip
    names = ("verb", "NPROC", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MAX_RESTARTS")
    assert sorted(text.partition(":")[0] for text in found) == sorted(
        [*names, "HANG_SECONDS", "STOP_SECONDS", "DRY_RUN"]
    )
    assert "give one of preprocess, pretrain" in found[0]


@pytest.mark.parametrize(
    ("given", "environment", "says"),
    [
        (["convert"], {"NPROC": 2}, "NPROC: convert runs in one process, not 2"),
        (["evaluate"], {"MAX_RESTARTS": 1}, "MAX_RESTARTS: evaluate has nothing to go on from"),
        ([], {}, "verb: is missing; give one of"),
        (
            ["pretrain"],
            {"MASTER_PORT": 65535, "MAX_RESTARTS": 1},
            "MASTER_PORT: is 65535; each of 1 restarts takes the next one, so it must be at most "
            "65534",
        ),
        (["pretrain"], {"MASTER_PORT": 70000}, "MASTER_PORT: is '70000'; must be a whole number"),
    ],
)
def test_what_does_not_go_together(given, environment, says):
    (text,) = problems(*given, **environment)
    assert text.startswith(says)


def test_settings_within_words():
    given = ["--a", "1", "a=2", "--b=3", "--a=4", "--aa", "5", "a.b=6"]
    assert words.value(given, "a") == "4" and words.value(given, "b") == "3"
    assert words.value(given, "c") is None and words.value(["--a"], "a") is None
    assert words.without(given, "a") == ["--b=3", "--aa", "5", "a.b=6"]
    assert words.with_value(["b=1"], "b", "2") == ["--b", "2"]


def test_logs_are_where_the_run_writes(tmp_path):
    run = tmp_path / "mine.yaml"
    run.write_text("base: gpt2\noutput_dir: there\n")
    assert read("pretrain").logs == Path("output/log")
    assert read("pretrain", "--config", "gpt2").logs == Path("output/log")
    assert read("pretrain", "--config", str(run)).logs == Path("there/log")
    assert read("pretrain", "--config", str(run), "output_dir=here").logs == Path("here/log")
    assert read("pretrain", "--config", "none.yaml").logs == Path("output/log")
    assert read("export", "--output_dir", "there").logs == Path("output/log")
    assert read("export", "--output_dir=there", "output_dir=here").logs == Path("here/log")


def test_the_printed_line_can_be_pasted(monkeypatch, tmp_path, capsys):
    """A shell gives msrun, and msrun the program, exactly our words."""
    prompt = 'it\'s "$HOME" *\nand more'
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("MASTER_PORT", "8118")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert main(["gpt2", "predict", "--predict_data", prompt]) == 0
    line = capsys.readouterr().out
    folder = Path(sys.executable).parent
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    start = f'env -u RANK_TABLE_FILE PATH={folder}:"$PATH" OMP_NUM_THREADS={share} {folder}/msrun '
    assert line.startswith(start)
    shown = line.replace(f"{folder}/msrun", "printf '%s\\0'", 1)
    pasted = subprocess.run(["bash", "-c", shown], capture_output=True, text=True).stdout
    assert pasted.split("\0")[:-1] == [
        "--worker_num=2", "--local_worker_num=2", "--master_addr=127.0.0.1", "--master_port=8118",
        "--node_rank=0", "--log_dir=output/log", "--cluster_time_out=600", "--join=True", "python",
        "-m", "lm_gpt2.predict", "--predict_data", prompt, "--use_parallel", "True",
    ]  # fmt: skip


def test_the_printed_line_of_one_process(monkeypatch, capsys):
    monkeypatch.setenv("DRY_RUN", "1")
    assert main(["gpt2", "pretrain", "--seed", "1"]) == 0
    expected = [sys.executable, "-m", "lm_gpt2.pretrain", "--seed", "1"]
    assert shlex.split(capsys.readouterr().out) == expected


def test_the_table_stays_with_the_launcher(monkeypatch, table):
    """MindSpore would number the ranks anew from it."""
    monkeypatch.setenv("RANK_TABLE_FILE", str(table))
    found = read("pretrain", "[2,4]", RANK_TABLE_FILE=table, MASTER_PORT=8118)
    environment = commands.worker_environment(found, 3, "10.0.0.9", 8118, "mark")
    assert "RANK_TABLE_FILE" not in environment
    assert (environment["DEVICE_ID"], environment["MS_NODE_ID"]) == ("6", "3")
    assert " ASCEND_RT_VISIBLE_DEVICES=4,6 " in commands.printed(found, 8118)


def test_help_and_a_missing_model(capsys):
    assert main(["gpt2", "--help"]) == 0 and "MAX_RESTARTS" in capsys.readouterr().out
    assert main(["gpt3", "pretrain"]) == 2
    assert "error: model: lm_gpt3 is not installed" in capsys.readouterr().err


def test_names_become_numbers():
    assert job.resolve("10.0.0.1") == "10.0.0.1" and job.resolve("localhost") in (
        "127.0.0.1",
        "::1",
    )
    with pytest.raises(ConfigError, match="MASTER_ADDR: no.such.name.invalid cannot be resolved"):
        job.resolve("no.such.name.invalid")
