"""Training and generation under several layouts, as a program for every rank and as its caller.

One job of n processes goes through many cases, since starting processes takes longer than training
a tiny model. Each rank writes what it found; `run` reads the files of all ranks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_core import spec as registry
from lm_core.config.parallel import ParallelConfig
from lm_core.testing import tiny

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.nn.network import Network
    from lm_core.spec import ModelSpec
    from lm_core.train.step import MicroBatch

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
    """

    degrees: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    parts: int = 1
    run: dict[str, Any] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        """Processes that it needs."""
        return ParallelConfig(**self.degrees).world_size


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
    """

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    tokens: list[list[int]]
    logits: np.ndarray | None


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
    run = registry.read_run(values, options)
    stages = run.parallel_config.micro_batch_num if run.parallel_config.pipeline_stage > 1 else 1
    run.runner_config.gradient_accumulation_steps = max(1, case.parts // stages)
    return run


def compute(spec: ModelSpec, case: Case, rank: int = 0) -> Found:
    """Trains and generates as one rank of a case."""
    from lm_core.auto import empty_model
    from lm_core.parallel import backend
    from lm_core.parallel.context import ParallelContext
    from lm_core.train import session

    run = settings(spec, case)
    config = run.model.config
    context = ParallelContext.from_config(config.parallel_config, case.world_size, rank)
    if case.world_size > 1:
        backend.make_groups(context.groups())
    model = empty_model(config, context=context, seed=run.seed)
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
    return Found(losses, norms, _copied(model), state, *_generated(model, case))


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
    spec: ModelSpec, cases: list[Case], folder: Path, timeout: float = 240
) -> list[list[Found]]:
    """What every rank of a job found, for each case; all cases need the same number of ranks.

    Raises:
        AssertionError: a rank failed; with the ends of all logs.
    """
    count = cases[0].world_size
    assert {case.world_size for case in cases} == {count}
    folder.mkdir(parents=True, exist_ok=True)
    job = {"model": spec.name, "cases": [asdict(case) for case in cases]}
    (folder / "job.json").write_text(json.dumps(job))
    start(count, [__file__, str(folder)], folder, timeout)
    return [
        [_read(folder / f"found-{number}-{rank}.npz") for rank in range(count)]
        for number in range(len(cases))
    ]


def start(count: int, program: list[str], folder: Path, timeout: float = 240) -> None:
    """Runs a Python program in `count` processes that can reach each other.

    Raises:
        AssertionError: one of them failed, or there was no end in time.
    """
    from lm_core.launch.job import free_port

    beside = str(Path(sys.executable).parent)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([beside, os.environ["PATH"]]),
        "OMP_NUM_THREADS": threads,
        "GLOG_v": "3",
    }
    command = [
        "msrun", f"--worker_num={count}", f"--local_worker_num={count}",
        f"--master_port={free_port()}", f"--log_dir={folder / 'log'}", "--join=True",
        "--cluster_time_out=60", *program,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        text = f"no end after {timeout} s"
    finally:
        _end(process)
    logs = sorted((folder / "log").glob("worker_*.log"))
    ends = "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)
    assert process.returncode == 0, f"{text[-500:]}\n{ends}"


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(folder: Path) -> None:
    """The program of a rank."""
    from lm_core.parallel import backend

    job = json.loads((folder / "job.json").read_text())
    spec = registry.find(job["model"])
    rank, _ = backend.join()
    for number, values in enumerate(job["cases"]):
        _write(folder / f"found-{number}-{rank}.npz", compute(spec, Case(**values), rank))


def _write(path: Path, found: Found) -> None:
    arrays = {f"weights/{name}": array for name, array in found.weights.items()}
    arrays |= {f"state/{name}": array for name, array in found.state.items()}
    if found.logits is not None:
        arrays["logits"] = found.logits
    numbers = {"losses": found.losses, "norms": found.norms, "tokens": json.dumps(found.tokens)}
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
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
