"""Training and generation under several layouts, as a program for every rank and as its caller.

One job goes through many cases, since starting processes takes longer than training a tiny model.
A case that needs fewer processes than the job has runs on some of them, beside other cases. Each
rank writes what it found; `run` reads the files of all ranks.

Every graph that a rank compiles is written down, so that its exchanges can be counted.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core import spec as registry
from lm_core.config.parallel import ParallelConfig
from lm_core.testing import sums, tiny

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.nn.network import Network
    from lm_core.spec import ModelSpec
    from lm_core.testing.sums import Sums
    from lm_core.train.step import MicroBatch

GRAPHS = "graphs"
"""The folder of a job where MindSpore writes compiled graphs down."""
ROWS = 8
"""Records of a step, over all ranks."""
STEPS = 5


@dataclass(frozen=True)
class Case:
    """What is computed under some degrees.

    Attributes:
        degrees: keys of `parallel_config`.
        sizes: changes to the tiny model.
        parts: micro-batches of a rank (the pipeline's included).
        run: more keys of the run, dotted.
        prompts: ids to continue after training; none: nothing is generated.
        first: the process of the job that is its rank 0; 0 where a pipeline sends messages, which
            name processes of the job.
    """

    degrees: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    parts: int = 1
    run: dict[str, Any] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    first: int = 0

    @property
    def world_size(self) -> int:
        """Processes that it needs."""
        return ParallelConfig(**self.degrees).world_size

    @property
    def repeats(self) -> bool:
        """Whether layers that several ranks compute are in a graph that runs for each part."""
        degrees = ParallelConfig(**self.degrees)
        return degrees.pipeline_stage > 1 and degrees.model_parallel > 1

    @property
    def processes(self) -> range:
        """The processes of the job that it runs on."""
        return range(self.first, self.first + self.world_size)


@dataclass
class Found:
    """What a rank found.

    Attributes:
        losses: of each step.
        norms: gradient norms of each step, before clipping.
        weights: this rank's parameters after training, by our names.
        state: of its optimizer, by name.
        tokens: prompts and answers.
        logits: of the first prompt.
        sums: over ranks, of the graphs that were compiled for training and written down.
    """

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    tokens: list[list[int]]
    logits: np.ndarray | None
    sums: Sums


def settings(spec: ModelSpec, case: Case) -> RunConfig:
    """The run of a case: a few steps that clip, warm up and decay."""
    name = f"{spec.name}_tiny"
    values = {
        "model": {"model_config": {"preset": name, **case.sizes}},
        "use_parallel": case.world_size > 1,
        "parallel_config": case.degrees,
        "seed": 3,
    }
    options = {"optimizer.weight_decay": 0.1, "runner_wrapper.max_grad_norm": 0.5, **case.run}
    # Adam makes whole steps of the rounding errors of gradients that are 0 (biases of keys have
    # such) or nearly so, unless it adds more than these to its divisor.
    options.setdefault("optimizer.eps", 1e-5)
    run = registry.read_run(values, options)
    stages = run.parallel_config.micro_batch_num if run.parallel_config.pipeline_stage > 1 else 1
    run.runner_config.gradient_accumulation_steps = max(1, case.parts // stages)
    return run


def compute(spec: ModelSpec, case: Case, rank: int = 0, graphs: Path | None = None) -> Found:
    """Trains and generates as one rank of a case.

    Args:
        spec: the model.
        case: what is computed.
        rank: of those of the case.
        graphs: where MindSpore writes the graphs of this process down.
    """
    from lm_core.auto import empty_model
    from lm_core.parallel import backend
    from lm_core.parallel.context import ParallelContext
    from lm_core.train import session
    from lm_core.train.reduction import sharers_of

    run = settings(spec, case)
    config = run.model.config
    context = ParallelContext.from_config(config.parallel_config, case.world_size, rank)
    before = sums.graphs(graphs)
    model = empty_model(config, context=context, seed=run.seed)
    if case.world_size > 1:
        groups = (*context.groups(), *sharers_of(model))
        backend.make_groups((name, [case.first + n for n in ranks]) for name, ranks in groups)
    model.initialize(run.seed)
    if config.pet_config is not None:
        _shake_adapter(model)
    step = session.training_step(run, model)
    losses, norms = [], []
    for number in range(STEPS):
        ids = tiny.token_ids(config.vocab_size, (ROWS, config.seq_length + 1), seed=number)
        own = np.array_split(ids, context.data_parallel)[context.dp_rank]
        result = step(_micro_batches(own, 3 + number, step.accumulation), 1e-3 * (number + 1))
        losses.append(result.loss)
        norms.append(result.grad_norm)
    state = {name: p.asnumpy().copy() for name, p in step.optimizer.state().items()}
    counted = sums.counted(sums.graphs(graphs) - before)
    return Found(losses, norms, _copied(model), state, *_generated(model, case), counted)


def _micro_batches(ids: np.ndarray, untrained: int, parts: int) -> list[MicroBatch]:
    """Records [B, S + 1] in parts; the first tokens of each record are not trained."""
    labels = ids[:, 1:].copy()
    labels[:, :untrained] = -100
    both = zip(np.split(ids[:, :-1], parts), np.split(labels, parts), strict=True)
    return [(inputs.copy(), targets.copy()) for inputs, targets in both]


def _shake_adapter(model: Network) -> None:
    """A new adapter changes nothing and has half of its gradients 0."""
    from mindspore import Tensor

    from lm_core.nn import init
    from lm_core.parallel.partition import WHOLE

    cuts = model.cuts()
    for name, parameter in model.named_parameters().items():
        if name.endswith(".lora_b"):
            own = cuts.get(name, WHOLE)
            part = model.context.tp_rank * own.parts // model.context.model_parallel
            values = init.normal_part(1, name, parameter.shape, 0.02, own, part)
            parameter.set_data(Tensor(values, parameter.dtype))


def _copied(model: Network) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in tiny.weights(model).items()}


def _generated(model: Any, case: Case) -> tuple[list[list[int]], np.ndarray | None]:
    if not case.prompts:
        return [], None
    from mindspore import Tensor

    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": []}
    rows = model.generate(case.prompts, **options)
    rows += model.generate(case.prompts, do_sample=True, seed=7, max_new_tokens=4, eos_token_id=[])
    rows += model.generate(case.prompts[:1], num_beams=2, **options)
    logits = model(Tensor(np.array(case.prompts[:1], np.int32))).asnumpy()
    return [row.tolist() for row in rows], logits


def run(
    spec: ModelSpec, cases: list[Case], folder: Path, timeout: float = 280
) -> list[list[Found]]:
    """What every rank of each case found, in one job that is as large as the cases need.

    Raises:
        AssertionError: a rank failed; with the ends of all logs.
    """
    # Groups are named after degrees, and a name stands for the same processes in a whole job.
    places = {_degrees(case): case.first for case in cases}
    assert all(places[_degrees(case)] == case.first for case in cases)
    count = max(case.processes.stop for case in cases)
    folder.mkdir(parents=True, exist_ok=True)
    job = {"model": spec.name, "cases": [asdict(case) for case in cases]}
    (folder / "job.json").write_text(json.dumps(job))
    settings = {**sums.SETTINGS, sums.FOLDER: str(folder / GRAPHS)}
    start(count, [__file__, str(folder)], folder, timeout, settings)
    return [
        [_read(folder / f"found-{number}-{rank}.npz") for rank in range(case.world_size)]
        for number, case in enumerate(cases)
    ]


def _degrees(case: Case) -> tuple[int, ...]:
    degrees = ParallelConfig(**case.degrees)
    return degrees.data_parallel, degrees.model_parallel, degrees.pipeline_stage


def start(
    count: int,
    program: list[str],
    folder: Path,
    timeout: float = 280,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a Python program in `count` processes that can reach each other; logs are in `folder`.

    Raises:
        AssertionError: one of them failed, or there was no end in time.
    """
    processes: list[subprocess.Popen[bytes]] = []
    own = {"GLOG_v": "3", "MS_TOPO_TIMEOUT": "60", **(environment or {})}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, command, given in _processes(count, program, folder):
            with (folder / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=given | own,
                        start_new_session=True,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        failed = _wait(processes[1:], time.monotonic() + timeout)
    finally:
        for process in processes:
            _end(process)
    logs = sorted(folder.glob("rank_*.log"))
    ends = "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)
    assert not failed, f"{failed} after {timeout} s at most\n{ends}"


def _processes(
    count: int, program: list[str], folder: Path
) -> list[tuple[str, list[str], dict[str, str]]]:
    """Names, commands and environments: of the process where the ranks meet, and of the ranks."""
    from lm_core.launch import commands
    from lm_core.launch.job import Job, free_port

    job = Job(model="", verb="", processes=count, devices=tuple(range(count)), output=folder)
    where = job.address, free_port(), secrets.token_hex(8)
    found = [("scheduler", *commands.scheduler(job, *where))]
    for rank in job.ranks:
        environment = commands.worker_environment(job, rank, *where)
        found.append((f"rank_{rank}", [sys.executable, *program], environment))
    return found


def _wait(ranks: Sequence[subprocess.Popen[bytes]], end: float) -> str:
    """Until all have ended, or one has failed; what went wrong."""
    while True:
        states = [process.poll() for process in ranks]
        failed = [f"rank {rank} ended with {one}" for rank, one in enumerate(states) if one]
        if failed or None not in states:
            return ", ".join(failed)
        if time.monotonic() > end:
            return "no end"
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(folder: Path) -> None:
    """The program of a process."""
    from lm_core.parallel import backend

    job = json.loads((folder / "job.json").read_text())
    spec = registry.find(job["model"])
    own, _ = backend.join()
    graphs = folder / GRAPHS / f"rank_{own}"
    gc.freeze()  # What is here stays: each compilation looks for garbage in all the rest.
    for number, values in enumerate(job["cases"]):
        case = Case(**values)
        if own in case.processes:
            rank = own - case.first
            found = compute(spec, case, rank, graphs)
            _write(folder / f"found-{number}-{rank}.npz", found)


def _write(path: Path, found: Found) -> None:
    arrays = {f"weights/{name}": array for name, array in found.weights.items()}
    arrays |= {f"state/{name}": array for name, array in found.state.items()}
    if found.logits is not None:
        arrays["logits"] = found.logits
    numbers = {"losses": found.losses, "norms": found.norms, "tokens": json.dumps(found.tokens)}
    numbers["sums"] = json.dumps(found.sums)
    np.savez(path, **arrays, **numbers)


def _read(path: Path) -> Found:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)

    def within(folder: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(folder): a for n, a in arrays.items() if n.startswith(folder)}

    return Found(
        arrays["losses"].tolist(),
        arrays["norms"].tolist(),
        within("weights/"),
        within("state/"),
        json.loads(str(arrays["tokens"])),
        arrays.get("logits"),
        json.loads(str(arrays["sums"])),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
