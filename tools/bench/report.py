"""Tables, and RESULTS.md, whose hand-written parts are kept."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from statistics import median
from typing import Any

import scaling
from models import MODELS

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BEGIN_SCALING, END_SCALING = "<!-- scaling: begin -->", "<!-- scaling: end -->"
INTRODUCTION = f"""# Benchmark

`hatch run bench:run` measures this project and its peers in turn and rewrites the parts between
comments.

{BEGIN}
{END}

## Scaling

{BEGIN_SCALING}
{END_SCALING}

## What was tried
"""
PEERS = (
    "Peers have ChatGLM2's network as GLM, which computes the same. For Baichuan2 they get Llama "
    "with a head whose rows were normalized once: tokens and the first loss agree, but a peer "
    "that trains does not normalize the head at every step, as the original and lm do. No peer "
    "has PanGu-alpha's query layer: they get GPT-2 of as many layers and the same sizes, and "
    "there is nothing to agree on. llama.cpp keeps keys and values in float16, as it does by "
    "default, so one row in eight may part from the others."
)
HEAD = """\
| what | against | ratio: median (range) | target | met | lm | they | share of read bandwidth |
|---|---|---|---|---|---|---|---|
"""


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Us divided by them, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each row and peer."""
    return HEAD + "".join(line for row in results.values() for line in _lines(row))


def _lines(row: dict[str, Any]) -> list[str]:
    ours, unit = row["values"]["lm"], row["unit"]
    targets = dict(row["targets"])
    lines = []
    for name, theirs in row["values"].items():
        if name == "lm":
            continue
        found = ratios(ours, theirs)
        middle = median(found)
        target = targets.get(name)
        sign = {True: ">=", False: "<=", None: "within x"}[row["higher"]]
        met = target is None or _met(middle, target, row["higher"])
        cells = [
            row["title"],
            name,
            f"**{middle:.2f}** ({min(found):.2f} - {max(found):.2f})",
            "" if target is None else f"{sign} {target:g}",
            "" if target is None else _yes(met),
            f"{_short(median(ours))} {unit}",
            f"{_short(median(theirs))} {unit}",
            _shares(row, name),
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    for name, why in row["missing"].items():
        if name not in row["values"]:
            number = f"{_short(median(ours))} {unit}"
            lines.append(f"| {row['title']} | {name} | {why} | | | {number} | | |\n")
    return lines


def _met(ratio: float, target: float, higher: bool | None) -> bool:
    if higher is None:
        return 1 / target <= ratio <= target
    return ratio >= target if higher else ratio <= target


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shares(row: dict[str, Any], name: str) -> str:
    if "shares" not in row:
        return ""
    ours, theirs = (100 * median(row["shares"][key]) for key in ("lm", name))
    least = row.get("least_share")
    target = "" if least is None else f" (>= {100 * least:.0f} %: {_yes(ours >= 100 * least)})"
    return f"lm {ours:.0f} %{target}, they {theirs:.0f} %"


def machine() -> str:
    """What this was measured on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        found = re.search(r"model name\s*: (.*)", info)
        name = found[1] if found else platform.processor()
        memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        size = f", {int(memory[1]) / 2**20:.0f} GiB" if memory else ""
    except OSError:
        name, size = platform.processor(), ""
    return f"{name}, {os.cpu_count()} cores{size}, Python {platform.python_version()}"


def measured(results: dict[str, dict[str, Any]]) -> str:
    """The generated part."""
    versions = {k: v for row in results.values() for k, v in row["versions"].items()}
    counts = {len(row["values"]["lm"]) for row in results.values()} - {1} or {1}
    rounds = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
    return (
        f"Measured on {datetime.date.today()}, {machine()}, 2 threads for everybody; "
        f"{'; '.join(versions.values())}.\n\n"
        f"{_models()}; random weights, float32, the same for all; tokens and first losses are "
        f"checked to agree. {rounds} rounds (memory: one) in which all have their turn; ratio = lm "
        f"divided by the peer within a round. The machine is shared and its speed drifts, so the "
        f"absolute numbers are for orientation only. Share of read bandwidth = bytes of weights x "
        f"steps/s over what two threads read just before and after. Rows called plan "
        f'train two updates of the sizes that they name in a fresh process; "they" is what '
        f"`lm plan` says. Rows with attention in blocks are of one sequence; their memory is the "
        f"peak of a process less what it held when it had read the model.\n\n{PEERS}\n\n"
        + table(results)
    )


def _models() -> str:
    """Those of the rows."""
    sizes = [
        f"{own.title} ({own.layers} layers of {own.hidden:,}, {own.heads} heads, feed-forward "
        f"{own.inner:,}, {own.vocabulary:,} words)"
        for name, own in MODELS.items()
        if name not in ("gpt2", "llama_long")
    ]
    return f"{MODELS['gpt2'].title}, and where a row says so {', '.join(sizes)}"


def write(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Replaces the generated parts of RESULTS.md."""
    text = path.read_text(encoding="utf-8") if path.exists() else INTRODUCTION
    text = _put(text, BEGIN, measured(results), END)
    text = _put(text, BEGIN_SCALING, scaling.section(results), END_SCALING)
    path.write_text(text, encoding="utf-8")


def _put(text: str, begin: str, part: str, end: str) -> str:
    """The text with another part between two comments."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}{end}{after}"
