"""Bytes that a training step really sends between processes of one machine, and what was counted.

The loopback interface counts all bytes; a long run less a short one leaves those of the steps in
between. Nothing else may use it meanwhile. Bytes that the script itself sends are the measure.
`python tools/bench/wire.py` prints a table.
"""

from __future__ import annotations

import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import several

LONG, SHORT = 20, 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"data_parallel": 2},
    "dp2, optimizer_shard": {"data_parallel": 2, "optimizer_shard": True},
    "tp2": {"model_parallel": 2},
    "tp2, vocab_emb_dp False": {"model_parallel": 2, "vocab_emb_dp": False},
    "pp2, 4 micro-batches": {"pipeline_stage": 2, "micro_batch_num": 4},
    "dp2 x tp2": {"data_parallel": 2, "model_parallel": 2},
}


def counted(degrees: dict[str, Any]) -> float:
    """Bytes that all ranks send in a step, as `lm plan` counts them."""
    from lm_core import spec as registry
    from lm_core.parallel import traffic
    from lm_core.parallel.partition import Partition
    from lm_core.peft import targets

    run = registry.read_run(several.settings(), {"use_parallel": True})
    run.parallel_config = run.parallel_config.model_copy(update=degrees)
    run.runner_config.batch_size = several.rows(degrees)
    config = run.model.config
    shapes = targets.shapes(registry.find("gpt2"), config)
    part = Partition(config, run.degrees, shapes)
    stages = run.degrees.pipeline_stage
    ranks = run.degrees.data_parallel * run.degrees.model_parallel
    sizes = (one.sent for stage in range(stages) for one in traffic.step(run, part, stage))
    return ranks * sum(sizes)


def counted_for_one() -> float:
    """What the interface counts for a byte."""
    size = 100_000_000
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        before = _loopback()
        taken = pool.submit(_take, server)
        with socket.create_connection(server.getsockname()) as sender:
            sender.sendall(bytes(size))
        taken.result()
    return (_loopback() - before) / size


def _take(server: socket.socket) -> None:
    with server.accept()[0] as receiver:
        while receiver.recv(1 << 20):
            pass


def measured(degrees: dict[str, Any], folder: Path) -> float:
    """Bytes on the loopback interface in a step."""
    found = []
    for steps in (SHORT, LONG):
        before = _loopback()
        several.train(folder, degrees, f"{len(degrees)}-{steps}-{abs(hash(str(degrees)))}", steps)
        found.append(_loopback() - before)
    return (found[1] - found[0]) / (LONG - SHORT)


def _loopback() -> int:
    """Bytes received so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    line = next(line for line in lines if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def main() -> None:
    """Prints the table."""
    print("| layout | counted, all ranks, as rings | seen on the loopback interface | ratio |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "wire"
        several.prepare(folder)
        for name, degrees in LAYOUTS.items():
            said, seen = counted(degrees), measured(degrees, folder) / counted_for_one()
            print(f"| {name} | {said / 1e6:.1f} MB | {seen / 1e6:.1f} MB | {seen / said:.2f} |")


if __name__ == "__main__":
    main()
