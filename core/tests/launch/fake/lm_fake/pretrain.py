"""Acts as words for its rank say: `1:print=hello,exit=3`; `1@2:...` is for the second attempt."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANK = os.environ.get("RANK_ID", "0")
FOLDER = os.environ["FAKE_FOLDER"]


def note(**values):
    with open(f"{FOLDER}/rank_{RANK}.jsonl", "a") as file:
        file.write(json.dumps(values) + "\n")


def child(own_session):
    """A grandchild of the launcher that would sleep for long."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=own_session)
    note(child=process.pid)


def launch(word):
    """A job within the job."""
    subprocess.Popen([sys.executable, "-m", "lm_core.launch", "fake", "pretrain", word])


def save(seconds):
    """On SIGTERM takes a while and ends well, as training does."""

    def handle(number, frame):
        note(signal=number)
        time.sleep(float(seconds))
        note(saved=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, handle)


def meet(name):
    """Waits until every rank is here."""
    Path(FOLDER, f"{name}.{RANK}").touch()
    wait_for(name, int(os.environ["RANK_SIZE"]))


def wait_for(name, count):
    while sum(found.startswith(name + ".") for found in os.listdir(FOLDER)) < count:
        time.sleep(0.01)


def beat():
    from lm_core.heartbeat import beat

    beat()


ACTIONS = {
    "print": lambda text: print(text.replace("_", " "), flush=True),
    "lines": lambda count: [print(f"line {n} of rank {RANK}") for n in range(int(count))],
    "error": lambda text: print(f"error: {text.replace('_', ' ')}", file=sys.stderr),
    "exit": lambda status: sys.exit(int(status)),
    "kill": lambda number: os.kill(os.getpid(), int(number)),
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "deaf": lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "launch": lambda name: launch(f"all:meet={name},sleep=100"),
    "save": save,
    "child": lambda kind: child(kind == "session"),
    "meet": meet,
    "beat": lambda _: beat(),
    "read": lambda _: note(read=sys.stdin.readline()),
}


def main():
    path = Path(FOLDER, f"rank_{RANK}.jsonl")
    attempt = 1 + (path.read_text().count('"argv"') if path.exists() else 0)
    note(argv=sys.argv[1:], pid=os.getpid(), env=dict(os.environ))
    for word in sys.argv[1:]:
        when, _, text = word.partition(":")
        if when in (RANK, "all", f"all@{attempt}", f"{RANK}@{attempt}"):
            for action in text.split(","):
                name, _, value = action.partition("=")
                ACTIONS[name](value)


if __name__ == "__main__":
    main()
