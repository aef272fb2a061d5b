"""The hardware tables say what `lm plan` says, and their card counts are the smallest that fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from math import prod

import pytest
from readmes import ROOT, run_all

from lm_core.cli import main

DOCUMENT = ROOT / "docs" / "hardware.md"
MODELS = (
    "gpt2", "gpt2_xl", "gpt2_13b", "gpt2_52b", "llama2_7b", "llama2_13b", "codellama_34b",
    "llama2_70b", "glm2_6b", "baichuan2_7b", "baichuan2_13b", "pangualpha_2_6b", "pangualpha_13b",
)  # fmt: skip
HALF = ("model.model_config.param_init_type=float16", "model.model_config.compute_dtype=float16")
TRAINED = ("runner_config.batch_size=1", "recompute_config.recompute=True")
JOBS = {
    "Inference": HALF,
    "LoRA": (*HALF, "model.model_config.pet_config.pet_type=lora", *TRAINED),
    "Full fine-tuning": (HALF[1], *TRAINED),
}
"""Section of the document -> what its commands set."""
MEMORY = ("31GB", "57GB")
"""What a card of 32 and one of 64 GB leave to a process."""
Degrees = tuple[int, int, int]


def layouts(cards: int, job: str) -> Iterator[Degrees]:
    """(data, tensor, stages) of so many cards: few stages first, then little tensor parallelism.

    Tensor parallelism stays inside a machine of eight. Only full fine-tuning gains memory from
    data parallelism, by the optimizer's state; generation knows no pipeline.
    """
    for stages in (1,) if job == "Inference" else (1, 2, 4, 8, 16):
        for tensor in (1, 2, 4, 8):
            data, rest = divmod(cards, stages * tensor)
            if rest == 0 and data > 0 and (data == 1 or job.startswith("Full")):
                yield data, tensor, stages


def settings(job: str, memory: str, degrees: Degrees) -> list[str]:
    data, tensor, stages = degrees
    return [
        *JOBS[job],
        "context.device_target=Ascend",
        f"context.max_device_memory={memory}",
        f"use_parallel={data * tensor * stages > 1}",
        f"parallel_config.data_parallel={data}",
        f"parallel_config.model_parallel={tensor}",
        f"parallel_config.pipeline_stage={stages}",
        f"parallel_config.micro_batch_num={stages}",
        f"parallel_config.optimizer_shard={data > 1}",
    ]


class Planned:
    """What `lm plan` prints about a run, on the fullest of its cards."""

    def __init__(self, text: str, job: str) -> None:
        verb = "generation" if job == "Inference" else "training"
        section = next(part for part in text.split("\n\n") if part.startswith(f"{verb}:"))
        self.tokens = re.findall(r"x ([\d,]+) tokens", section)[0]
        peaks = next(line for line in section.splitlines() if line.startswith("  peak"))
        self.most = max(re.findall(r"[\d.,]+ [KMG]iB", peaks), key=kibibytes)
        self.fits = f"{verb} fits" in text.partition("\ndevice: ")[2]


def kibibytes(size: str) -> float:
    value, unit = size.split()
    return float(value.replace(",", "")) * {"KiB": 1, "MiB": 1024, "GiB": 1024**2}[unit]


def row(model: str, job: str, planned: Callable[..., Planned | None]) -> str:
    """A line of a table: one card, then for each kind of card how many, cut how, holding what."""
    alone = planned(model, job, "31GB", (1, 1, 1))
    assert alone is not None
    cells = [f"`{model}`", alone.tokens, alone.most]
    for memory in MEMORY:
        degrees, found = smallest(
            (layout, planned(model, job, memory, layout))
            for cards in (1, 2, 4, 8, 16, 32, 64, 128)
            if cards * int(memory.removesuffix("GB")) > kibibytes(alone.most) / 1024**2
            for layout in layouts(cards, job)
        )
        cut = "" if prod(degrees) == 1 else f" ({' x '.join(map(str, degrees))})"
        cells += [f"{prod(degrees)}{cut}", found.most]
    return f"| {' | '.join(cells)} |"


def smallest(tried: Iterable[tuple[Degrees, Planned | None]]) -> tuple[Degrees, Planned]:
    return next((layout, found) for layout, found in tried if found is not None and found.fits)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_the_tables_say_what_plan_says(job: str, capsys):
    def planned(model: str, job: str, memory: str, degrees: Degrees) -> Planned | None:
        status = main(["plan", model, *settings(job, memory, degrees)])
        text = capsys.readouterr().out
        return Planned(text, job) if status == 0 else None  # 2: these degrees do not fit the model

    section = DOCUMENT.read_text(encoding="utf-8").partition(f"## {job}\n")[2].partition("\n## ")[0]
    written = [line for line in section.splitlines() if line.startswith("| `")]
    assert written == [row(model, job, planned) for model in MODELS]


def test_the_commands_of_the_document_set_what_the_tables_are_made_with(folder):
    text = re.sub(r"\s*\\\n\s*", " ", DOCUMENT.read_text(encoding="utf-8"))
    for job, given in JOBS.items():
        section = text.partition(f"## {job}\n")[2].partition("\n## ")[0]
        lines = [line.split() for line in section.splitlines() if line.startswith("lm plan ")]
        assert lines
        for line in lines:
            memory = line[line.index("context.device_target=Ascend") + 1].partition("=")[2]
            assert memory in MEMORY
            assert set(given) <= set(line)
    run_all(DOCUMENT, folder, [])
