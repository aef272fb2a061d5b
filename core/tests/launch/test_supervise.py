"""What the launcher does when workers die, hang, say something, or are to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lm_core.launch.job import free_port


def test_all_well(jobs):
    status, out, errors = jobs.run("0:print=hello", "1:print=secret")
    assert (status, out) == (0, "hello\n")
    assert "ranks 0 to 1 of 2" in errors and "error" not in errors
    assert "rank 1 of 2 starts" in jobs.log(1) and "secret" in jobs.log(1)


def test_what_mindspore_says_of_its_connections_is_in_the_logs_alone(jobs):
    """On the screen it would stand between the lines of rank 0, and between those of a death."""
    line = "[INFO] DISTRIBUTED(1:0x7f:python): Start] Event base dispatch success!"
    status, out, errors = jobs.run(
        f"0:print=hello,print={line},meet=a", f"1:meet=a,print={line},exit=3"
    )
    assert (status, "DISTRIBUTED" in out + errors) == (3, False)
    assert line in jobs.log(0) and line in jobs.log(1)


def test_workers_get_their_ranks_and_flags(jobs):
    jobs.run("--config", "a b", NPROC=3, PATH=f"/nowhere:{os.environ['PATH']}")
    for rank in range(3):
        (found,), (words,) = jobs.notes(rank, "env"), jobs.notes(rank, "argv")
        assert words == ["--config", "a b", "--use_parallel", "True"]
        expected = {
            "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank),
            "DEVICE_ID": str(rank), "MS_WORKER_NUM": "3", "RANK_SIZE": "3",
            "MS_SCHED_HOST": "127.0.0.1",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 3)),
        }  # fmt: skip
        assert {name: found[name] for name in expected} == expected
        assert found["LM_HEARTBEAT"] == str(jobs.folder / f"output/log/rank_{rank}/heartbeat")
        assert found["PATH"].split(":")[1] == "/nowhere"


def test_what_the_user_says_stays(jobs):
    jobs.run("--use_parallel", "False", "output_dir=there", OMP_NUM_THREADS="7")
    assert jobs.notes(1, "argv") == [["--use_parallel", "False", "output_dir=there"]]
    assert jobs.notes(1, "env")[0]["OMP_NUM_THREADS"] == "7"
    assert (jobs.folder / "there/log/rank_1/launch.log").exists()
    assert not (jobs.folder / "output").exists()


def test_output_comes_line_by_line(jobs):
    process = jobs.start("0:print=first,sleep=60", "1:sleep=60")
    begin = time.monotonic()
    assert process.stdout.readline() == "first\n"
    assert time.monotonic() - begin < 10
    process.kill()


@pytest.mark.parametrize(
    ("action", "status", "says"),
    [
        ("exit=3", 3, "rank 1 ended with status 3"),
        ("kill=9", 137, "rank 1 was killed by SIGKILL (often for want of memory)"),
        ("kill=11", 139, "rank 1 was killed by SIGSEGV"),
    ],
)
def test_a_death_before_the_cluster_forms_ends_the_job(jobs, action, status, says):
    """Rank 0 waits for the others, as MindSpore would, and has seen nobody."""
    begin = time.monotonic()
    found, out, errors = jobs.run("0:meet=start", f"1:lines=30,{action}")
    assert time.monotonic() - begin < 20
    assert found == status
    (line,) = [line for line in errors.splitlines() if "error: " in line]
    assert says in line and "output/log/rank_1/launch.log" in line
    assert "    line 29 of rank 1" in errors and "    line 10 of rank 1" in errors
    assert "line 9 of rank 1" not in errors


def test_a_death_after_it_formed_ends_all_that_came_from_the_job(jobs):
    """Peers that hear nothing, children, children in sessions of their own."""
    status, _, errors = jobs.run(
        "0:deaf,child=group,meet=a,sleep=100", "1:child=session,meet=a,exit=5",
        "2:child=session,deaf,meet=a,sleep=100", NPROC=3,
    )  # fmt: skip
    assert status == 5 and "rank 1 ended with status 5" in errors
    assert len(jobs.pids()) == 6


def test_the_death_of_the_shown_rank_is_not_told_twice(jobs):
    status, out, errors = jobs.run("0:lines=3,exit=4", "1:sleep=100")
    assert (status, out) == (4, "line 0 of rank 0\nline 1 of rank 0\nline 2 of rank 0\n")
    assert "rank 0 ended with status 4" in errors and "line 2" not in errors


def test_a_lost_scheduler_ends_the_job(jobs):
    status, _, errors = jobs.run("all:sleep=100", FAKE_SCHEDULER=7)
    assert status == 7 and "the scheduler ended with status 7" in errors


def test_where_all_workers_are_here_nobody_waits_for_the_scheduler(jobs):
    """MindSpore's takes five seconds to find that it is alone."""
    process = jobs.start("all:meet=a,print=done", FAKE_SCHEDULER="stays")
    assert process.stdout.readline() == "done\n"
    begin = time.monotonic()
    assert jobs.finish(process)[0] == 0
    assert time.monotonic() - begin < 8  # _SCHEDULER_SECONDS are more


@pytest.mark.parametrize("who", ["all", "0", "1"])
def test_an_error_of_the_user_is_shown_once(jobs, who):
    words = ["all:meet=a", f"{who}:error=seed:_is_x;_must_be_a_number,exit=2", "all:sleep=100"]
    status, out, errors = jobs.run(*words, MAX_RESTARTS=2)
    assert status == 2
    assert (out + errors).count("error: seed: is x; must be a number") == 1
    assert (out + errors).count("error: ") == 1 and "restart" not in errors
    assert sum(len(jobs.notes(rank, "argv")) for rank in (0, 1)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_workers_save_and_ends(jobs, number):
    process = jobs.start("all:save=1,meet=ready,sleep=100", MAX_RESTARTS=3)
    assert jobs.until(lambda: len(list(jobs.folder.glob("ready.*"))) == 2)
    process.send_signal(number)
    process.send_signal(number)  # a terminal and a shell may both send it
    status, _, errors = jobs.finish(process)
    assert status == 128 + number and "restart" not in errors
    assert f"{number.name}: the workers have 120 s to save" in errors
    for rank in (0, 1):
        assert jobs.notes(rank, "signal") == [signal.SIGTERM]
        assert jobs.notes(rank, "saved") == [True]


def test_a_terminal_that_closes_lets_workers_save(jobs):
    """Nobody reads any more what we say, which must not end us before they are done."""
    process = jobs.start("all:meet=ready,save=1,print=on,sleep=100")
    assert process.stdout.readline() == "on\n"
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 129
    assert [jobs.notes(rank, "saved") for rank in (0, 1)] == [[True], [True]]
    assert jobs.running() == []


def test_a_reader_that_goes_does_not_end_the_job(jobs):
    process = jobs.start("0:print=on,sleep=0.5,print=unread,print=more", "1:sleep=1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 0 and process.stderr.read().count("\n") == 1
    assert "more" in jobs.log(0)


def test_a_second_signal_ends_at_once(jobs):
    process = jobs.start("all:deaf,child=session,meet=ready,sleep=100")
    assert jobs.until(lambda: len(list(jobs.folder.glob("ready.*"))) == 2)
    process.send_signal(signal.SIGINT)
    assert any("to save" in line for line in iter(process.stderr.readline, ""))
    time.sleep(0.7)  # from here on: what comes within half a second is the same signal
    assert process.poll() is None and len(jobs.running()) == 4
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert jobs.finish(process)[0] == 130
    assert time.monotonic() - begin < 10


def test_time_to_save_ends(jobs):
    process = jobs.start("0:save=0", "1:deaf", "all:meet=ready,sleep=100", STOP_SECONDS=0.5)
    assert jobs.until(lambda: len(list(jobs.folder.glob("ready.*"))) == 2)
    process.send_signal(signal.SIGTERM)
    status, _, errors = jobs.finish(process)
    assert status == 143 and "ending the workers that are left" in errors
    assert jobs.notes(0, "saved") == [True]


def test_nothing_outlives_a_killed_launcher(jobs):
    process = jobs.start("0:deaf", "all:child=session,child=group,meet=ready,sleep=100")
    assert jobs.until(lambda: len(list(jobs.folder.glob("ready.*"))) == 2)
    assert len(jobs.running()) == 6
    process.kill()
    process.communicate(timeout=30)
    assert jobs.until(lambda: not jobs.running(), 20)


def test_workers_do_not_outlive_launcher_and_guard(jobs):
    """`pkill -9 -f lm_core.launch` hits both, and no worker."""
    process = jobs.start("all:deaf,meet=ready,sleep=100")
    assert jobs.until(lambda: len(list(jobs.folder.glob("ready.*"))) == 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {number: Path(f"/proc/{number}/cmdline").read_bytes() for number in children}
    (guard,) = [int(number) for number, line in lines.items() if b"lm_core.launch" in line]
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=30)
    assert jobs.until(lambda: not jobs.running(), 20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_job_within_a_job_ends_with_it(jobs, number):
    process = jobs.start("0:launch=inner", "all:sleep=100")
    assert jobs.until(lambda: len(list(jobs.folder.glob("inner.*"))) == 2)
    assert len(jobs.running()) == 4
    process.send_signal(number)
    process.communicate(timeout=30)
    assert jobs.until(lambda: not jobs.running(), 20)


def test_a_restart_goes_on_from_the_newest_checkpoint(jobs):
    status, out, errors = jobs.run(
        "all@1:meet=first", "1@1:exit=1", "all@2:meet=second", "1@2:kill=9", "0@3:print=done",
        "--resume_training=old", "--seed", "7", MAX_RESTARTS=2,
    )  # fmt: skip
    assert (status, out) == (0, "done\n"), errors
    assert "restart 1 of 2" in errors and "restart 2 of 2" in errors
    first, second, third = jobs.notes(1, "argv")
    assert "--resume_training=old" in first
    assert second == third and "--resume_training=old" not in second
    assert second[-4:] == ["--resume_training", "true", "--use_parallel", "True"]
    ports = [env["MS_SCHED_PORT"] for env in jobs.notes(1, "env")]
    assert len(set(ports)) == 3
    log = jobs.log(1)
    assert log.count("starts") == 3 and "rank 1 of 2 starts, restart 2 of 2" in log


def test_restarts_end(jobs):
    port = free_port()
    status, _, errors = jobs.run("1:exit=6", "0:sleep=100", MAX_RESTARTS=1, MASTER_PORT=port)
    assert status == 6 and len(jobs.notes(1, "argv")) == 2
    assert [env["MS_SCHED_PORT"] for env in jobs.notes(1, "env")] == [str(port), str(port + 1)]
    assert errors.count("rank 1 ended with status 6") == 2


def test_a_hang_ends_the_job(jobs):
    begin = time.monotonic()
    status, _, errors = jobs.run(
        *["all:beat,meet=a", "1:print=stuck,sleep=100"],
        *[f"0:{','.join(50 * ['sleep=0.1', 'beat'])}"],
        HANG_SECONDS=2, START_SECONDS=60,
    )  # fmt: skip
    assert status == 1 and "rank 1 hangs: it has shown no life for 0:02" in errors
    assert "    stuck" in errors and 2 < time.monotonic() - begin < 20


def test_a_hang_is_started_again(jobs):
    status, out, errors = jobs.run(
        "all@1:meet=a,beat,sleep=100", "0@2:print=went_on", MAX_RESTARTS=1, HANG_SECONDS=1
    )
    assert (status, out) == (0, "went on\n") and "hangs" in errors


def test_compiling_is_no_hang(jobs):
    slow = {"HANG_SECONDS": 0.3, "START_SECONDS": 30}
    assert jobs.run("all:sleep=1.5", **slow)[0] == 0
    status, _, errors = jobs.run("all:sleep=100", HANG_SECONDS=0.3, START_SECONDS=1)
    assert status == 1 and "hangs" in errors


def test_only_training_shows_life(jobs):
    status, _, errors = jobs.run(
        "all:sleep=1.5", verb="evaluate", HANG_SECONDS=0.3, START_SECONDS=0.3
    )
    assert status == 0, errors
    assert jobs.run("all:beat,sleep=1.5", HANG_SECONDS=0)[0] == 0


@pytest.mark.parametrize("verb", ["chat", "evaluate"])
def test_rank_0_of_a_verb_that_reads_has_the_input(jobs, verb):
    ends, gives = os.pipe()
    os.write(gives, b"hello\nyou\n")
    os.close(gives)
    status, _, errors = jobs.run("all:read", verb=verb, stdin=ends)
    os.close(ends)
    assert status == 0, errors
    assert jobs.notes(0, "read") == ["hello\n" if verb == "chat" else ""]
    assert jobs.notes(1, "read") == [""]


def test_a_conversation_ends_at_once(jobs):
    """Rank 1 waits in an exchange, where no handler runs; there is nothing to save."""
    process = jobs.start("1:deaf", "all:meet=here,sleep=100", verb="chat")
    assert jobs.until(lambda: len(list(jobs.folder.glob("here.*"))) == 2)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, _, errors = jobs.finish(process)
    assert status == 130 and "SIGINT: the conversation ends" in errors
    assert time.monotonic() - begin < 10


def test_one_process_takes_the_launchers_place(jobs):
    process = jobs.start("0:print=alone,exit=5", "--seed", "1", NPROC=1)
    status, out, errors = jobs.finish(process)
    assert (status, out, errors) == (5, "alone\n", "")
    assert jobs.notes(0, "pid") == [process.pid]
    assert jobs.notes(0, "argv")[0][1:] == ["--seed", "1"]
    assert not jobs.notes(0, "env")[0].keys() & {"MS_ROLE", "OMP_NUM_THREADS", "LM_HEARTBEAT"}


def test_one_process_is_watched_where_asked(jobs):
    status, out, errors = jobs.run("0@1:exit=5", "0@2:print=again", NPROC=1, MAX_RESTARTS=1)
    assert (status, out) == (0, "again\n") and "restart 1 of 1" in errors
    assert jobs.notes(0, "argv")[1][-2:] == ["--resume_training", "true"]
    assert "MS_ROLE" not in jobs.notes(0, "env")[0]


def test_a_second_machine_starts_no_scheduler(jobs):
    words = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 8118}
    status, out, _ = jobs.run("2:print=two", "3:print=three", **words)
    assert (status, out) == (0, "two\n")
    assert jobs.notes(3, "env")[0]["DEVICE_ID"] == "1"
    assert jobs.notes(3, "env")[0]["MS_SCHED_HOST"] == "127.0.0.1"
    assert not (jobs.folder / "output/log/scheduler.log").exists()


def test_a_port_in_use(jobs):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = jobs.run("all:sleep=100", MASTER_PORT=port)
    assert status == 2 and errors.startswith(f"error: MASTER_PORT: {port} cannot be used")
    assert jobs.pids() == []


def test_a_folder_that_cannot_be_written(jobs):
    (jobs.folder / "output").write_text("a file")
    status, _, errors = jobs.run("all:sleep=100")
    assert status == 2 and errors.startswith("error: ") and "Traceback" not in errors


def test_running_is_told_from_ended(jobs):
    """The helper that the promises of this file rest on."""
    assert jobs.is_running(os.getpid())
    process = jobs.start("all:exit=0")
    process.wait()
    assert not jobs.is_running(process.pid)
