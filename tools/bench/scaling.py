"""How long a training step takes on 8 to 2,048 cards: a model, not a measurement.

    python tools/bench/scaling.py

The bytes are those of lm_core.parallel.traffic, the sizes those of lm_core.parallel.partition; the
speeds of cards and links are what others have published (`SOURCES`). The text is also the section
"Scaling" of RESULTS.md, where measured rows of two processes stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.parallel.partition import Partition
    from lm_core.parallel.traffic import Exchange

MATMUL = 0.5
"""Share of the peak that a step reaches while it computes."""
LINK, NETWORK = 0.65, 0.9
"""Shares of the published rates that were measured by others, between two cards and two servers."""
LATENCY = 30e-6
"""Seconds of an exchange, however small."""
SERVER = 8
"""Cards of a server."""


@dataclass(frozen=True)
class Card:
    """A kind of card in servers of 8; rates are one way, for each card, in bytes a second.

    Attributes:
        name: as users know it.
        flops: peak in float16.
        mesh: cards that are linked with each other, pair by pair.
        link: of such a pair.
        bridge: between two meshes of a server.
        network: between servers.
    """

    name: str
    flops: float
    mesh: int
    link: float
    bridge: float
    network: float

    def rate(self, ranks: int, stride: int) -> float:
        """Bytes a second that each of some ranks sends to the others, which are `stride` apart."""
        span = ranks * stride
        if span <= self.mesh:
            return LINK * self.link * (ranks - 1)
        return LINK * self.bridge if span <= SERVER else NETWORK * self.network


CARDS = {
    "910B": Card("Ascend 910B", 320e12, 8, 28e9, 28e9, 25e9),
    "910A": Card("Ascend 910A", 256e12, 4, 30e9, 31.5e9, 12.5e9),
}
SOURCES = """\
| | figure | where it was published |
|---|---|---|
| 910B, float16 | 320 TFLOP/s | github.com/ArthurChiao/arthurchiao.github.io, _posts/2023-10-25-gpu-data-sheets.md |
| 910B, HCCS of each pair of 8 | 56 GB/s both ways (28 one way); 392 GB/s for a card | the same |
| 910B, between servers | 200 Gb/s for each card | github.com/xiaojia151/Hixl, benchmarks/A2_benchmark_performance.md: 22.6 GB/s over RDMA between two servers, which is 0.9 of 25 |
| 910B, one link of HCCS, measured | 19.4 GB/s written | the same, within a server: 0.69 of 28 |
| 910B, AllReduce of 2, 4, 8 cards, measured | 18, 30, 72 GB/s of the tensor | github.com/gameofdimension/limulidae, README.md; as a ring counts (x 2 (n - 1) / n) and for each of n - 1 links: 18, 15, 18 GB/s, 0.54 to 0.64 of 28 |
| 910B, large products in bfloat16, measured | 328 TFLOP/s | the same |
| 910A, float16 | 256 TFLOP/s | vengineer.hatenablog.com/entry/2019/09/06/070000 |
| 910A, HCCS | 3 links of 240 Gb/s | the same; groups of 4 with PCIe between them: support.huaweicloud.com/intl/en-us/drawer-cce/Cluster_cce-gpu-topology-predicate.html |
| 910A, PCIe 4.0 and network | 16 lanes of 16 Gb/s; 100 Gb/s for each card | hxnews.com/news/itkj/kjqy/201909/18/1806187_3.shtml |
"""  # noqa: E501


@dataclass(frozen=True)
class Layout:
    """A run over cards.

    Attributes:
        name: of the run.
        dp: data_parallel.
        tp: model_parallel.
        pp: pipeline_stage.
        batches: micro-batches of 2 records for an update, in the pipeline or added up.
    """

    name: str
    dp: int
    tp: int
    pp: int
    batches: int

    def run(self) -> RunConfig:
        """All settings: float16 on Ascend, recomputed blocks, a shared optimizer."""
        from lm_core.spec import read_run

        staged = self.pp > 1
        return read_run(
            self.name,
            {
                "context.device_target": "Ascend",
                "model.model_config.param_init_type": "float16",
                "model.model_config.compute_dtype": "float16",
                "runner_config.batch_size": 2,
                "runner_config.gradient_accumulation_steps": 1 if staged else self.batches,
                "parallel_config.data_parallel": self.dp,
                "parallel_config.model_parallel": self.tp,
                "parallel_config.pipeline_stage": self.pp,
                "parallel_config.micro_batch_num": self.batches if staged else 1,
                "parallel_config.optimizer_shard": True,
            },
        )


LAYOUTS = [
    Layout("gpt2_13b", 1, 8, 1, 256),
    Layout("gpt2_13b", 2, 8, 1, 128),
    Layout("gpt2_13b", 8, 8, 1, 32),
    Layout("gpt2_13b", 2, 8, 4, 128),
    Layout("gpt2_13b", 64, 8, 1, 4),
    Layout("gpt2_13b", 16, 8, 4, 16),
    Layout("gpt2_13b", 256, 8, 1, 1),
    Layout("gpt2_13b", 64, 8, 4, 4),
    Layout("gpt2_52b", 1, 8, 8, 512),
    Layout("gpt2_52b", 8, 1, 16, 64),
    Layout("gpt2_52b", 2, 8, 8, 256),
    Layout("gpt2_52b", 8, 8, 8, 64),
    Layout("gpt2_52b", 32, 8, 8, 16),
]
"""The same batch on any number of cards: 512 records of 2,048 tokens, 1,024 of 1,024."""


@dataclass(frozen=True)
class Step:
    """Seconds of an update, for each rank of the slowest stage.

    Attributes:
        compute: all micro-batches.
        tensor: sums among ranks that share layers.
        stages: messages between stages, and waiting for the first and the last micro-batch.
        data: exchange of gradients and of updated weights, as far as nothing is computed meanwhile.
        useful: share of the peak of all cards that goes into the model, not counting what is
            computed again.
        memory: bytes on the fullest card.
    """

    compute: float
    tensor: float
    stages: float
    data: float
    useful: float
    memory: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.tensor + self.stages + self.data


class Model:
    """The model of a step; ASSUMPTIONS says what it takes for granted.

    Args:
        layout: the run and how it is cut.
        card: what computes it.
    """

    def __init__(self, layout: Layout, card: Card) -> None:
        from lm_core.config.parallel import ParallelConfig
        from lm_core.parallel import traffic
        from lm_core.parallel.partition import Partition
        from lm_core.peft import targets
        from lm_core.spec import of_run

        self.run, self.card, self.batches = layout.run(), card, layout.batches
        config, self.degrees = self.run.model.config, self.run.degrees
        shapes = targets.shapes(of_run(layout.name), config)
        self.whole = Partition(config, ParallelConfig(), shapes)
        self.part = Partition(config, self.degrees, shapes)
        self.stages = range(layout.pp)
        self.sent = [traffic.step(self.run, self.part, stage) for stage in self.stages]

    def step(self) -> Step:
        """Seconds of an update."""
        from lm_core.nn import memory

        turns = [self.turn(stage) for stage in self.stages]
        compute, tensor, message = max(turns, key=sum)
        waits = (len(self.stages) - 1) * (compute + tensor + message)
        times = (
            self.batches * compute,
            self.batches * tensor,
            self.batches * message + waits,
            max(self.data(stage, turns[stage]) for stage in self.stages),
        )
        operations = (
            3 * sum(self.forward(self.whole, 0)) * self.batches * self.degrees.data_parallel
        )
        useful = operations / (sum(times) * self.degrees.world_size * self.card.flops)
        fullest = memory.training(self.run, self.part, memory.fullest(self.run, self.part))
        return Step(*times, useful, fullest.peak - fullest.program)

    def forward(self, part: Partition, stage: int) -> tuple[float, float]:
        """Operations of a forward pass of one micro-batch: of the blocks and of the head."""
        from lm_core.parallel.partition import HEAD, TABLE

        config, rows = part.config, self.run.runner_config.batch_size
        tokens = rows * config.seq_length
        inside = [n for n in part.names(stage) if n.startswith("layers.") and n.endswith(".weight")]
        shapes = [part.local_shape(name) for name in inside]
        weights = sum(prod(shape) for shape in shapes if len(shape) == 2)
        scores = 4 * tokens * config.seq_length * config.hidden_size / part.degrees.model_parallel
        head = prod(part.local_shape(TABLE if part.is_tied else HEAD)) * part.has_head(stage)
        return 2 * tokens * weights + len(part.layers(stage)) * scores, 2 * tokens * head

    def again(self, stage: int) -> int:
        """How often blocks compute their forward pass once more."""
        return self.run.recompute_config.recompute + (not self.part.has_head(stage))

    def turn(self, stage: int) -> tuple[float, float, float]:
        """Seconds of one micro-batch: computing, sums of tensors, messages to neighbours."""
        blocks, head = self.forward(self.part, stage)
        operations = (3 + self.again(stage)) * blocks + 3 * head
        tensor, message = (
            sum(self.time(item) for item in self.sent[stage] if item.group == group) / self.batches
            for group in ("tp", "pp")
        )
        return operations / (self.card.flops * MATMUL), tensor, message

    def data(self, stage: int, turn: tuple[float, float, float]) -> float:
        """Seconds in which gradients and weights are exchanged and nothing is computed."""
        items = [item for item in self.sent[stage] if item.group in ("dp", "ends")]
        times = {(item.group, item.what): self.time(item) for item in items}
        gradients = times.pop(("dp", "gradients"), 0.0)
        if self.batches == 1:
            # The first pieces go while the backward pass goes on, the last one cannot.
            backward = (2 + self.again(stage)) / (3 + self.again(stage)) * (turn[0] + turn[1])
            last = gradients / self.degrees.gradient_aggregation_group
            gradients = max(last, gradients - backward)
        return gradients + sum(times.values())

    def time(self, item: Exchange) -> float:
        """Seconds of the exchanges of one kind, one after the other."""
        size = self.degrees.data_parallel * self.degrees.model_parallel
        ranks, stride = {
            "tp": (self.degrees.model_parallel, 1),
            "dp": (self.degrees.data_parallel, self.degrees.model_parallel),
            "pp": (2, size),
            "ends": (2, self.degrees.world_size // 2),
        }[item.group]
        return item.sent / self.card.rate(ranks, stride) + item.calls * LATENCY


ASSUMPTIONS = f"""\
What is assumed: computing runs at {MATMUL:g} of the peak, norms, activations and the optimizer
included (the attention is computed whole, not its lower half); links give {LINK:g} and the network
{NETWORK:g} of what is published; an exchange takes {LATENCY * 1e6:.0f} us more. Cards that are
linked pair by pair use all of their links at once, between servers each card sends through its own
port in one ring, and nobody else is on the network. Sums among the ranks of a layer, messages
between stages, and what follows the last micro-batch run while nothing is computed; only where an
update has one micro-batch and no stages do gradients go during the backward pass. Weights and
activations are float16, gradients are exchanged as float32, blocks are recomputed, and so is the
forward pass of all stages but the last.
Not counted: reading records, writing checkpoints, cards that are slower than others.
"""
HEAD_OF_TABLE = """\
| model | cards | dp x tp x pp | micro-batches | seconds | computing | tp | pp | dp | records/s | of linear | of the peak | memory |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def lines(card: Card) -> Iterator[str]:
    """The rows of the table: a layout each; `linear` continues the smallest number of cards."""
    first: dict[str, float] = {}
    for layout in LAYOUTS:
        step, cards = Model(layout, card).step(), layout.dp * layout.tp * layout.pp
        records = 2 * layout.dp * layout.batches / step.seconds
        linear = records / cards / first.setdefault(layout.name, records / cards)
        parts = (step.compute, step.tensor, step.stages, step.data)
        cells = [
            layout.name,
            f"{cards:,}",
            f"{layout.dp} x {layout.tp} x {layout.pp}",
            str(layout.batches),
            f"{step.seconds:.3g}",
            *(f"{100 * part / step.seconds:.0f} %" for part in parts),
            f"{records:,.0f}" if records >= 10 else f"{records:.2g}",
            f"{100 * linear:.0f} %",
            f"{100 * step.useful:.0f} %",
            f"{step.memory / 2**30:.0f} GiB",
        ]
        yield "| " + " | ".join(cells) + " |\n"


def measured(results: dict[str, dict[str, Any]]) -> str:
    """What two processes cost on this machine, from the rows that `run.py` measures."""
    found = []
    for name in ("tp2_step", "dp2_step"):
        if name in results:
            values = results[name]["values"]
            times = (median(values[who]) for who in ("lm", "lm, one process"))
            two, one = (f"{1000 * seconds:.0f} ms" for seconds in times)
            found.append(f"- {results[name]['title']}: {two} against {one}\n")
    if not found:
        return "Two processes on this machine: not measured (`--rows tp2_step,dp2_step`).\n"
    return "Measured, two processes on this machine (the rows of the table above):\n\n" + "".join(
        found
    )


def section(results: dict[str, dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    tables = "\n".join(
        f"{card.name}, servers of {SERVER}:\n\n{HEAD_OF_TABLE}{''.join(lines(card))}"
        for card in CARDS.values()
    )
    return (
        "A model, **not a measurement**: no cluster was at hand. It counts what the code exchanges "
        "(lm_core/parallel/traffic.py) and computes, and takes speeds that others have published. "
        f"`python tools/bench/scaling.py` prints it.\n\n{tables}\n{ASSUMPTIONS}\n{SOURCES}\n"
        f"{measured(results)}"
    )


if __name__ == "__main__":
    print(section({}))
