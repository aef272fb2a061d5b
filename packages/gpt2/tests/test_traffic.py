"""What is said about the exchanges of a step, against the compiled graphs of real steps.

MindSpore writes every graph down; a sum over ranks is a line with its group and its shape.
"""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from pathlib import Path

import pytest

from lm_core.parallel import traffic
from lm_core.parallel.partition import Partition
from lm_core.peft import targets
from lm_core.testing import ranks
from lm_gpt2 import SPEC

SIZES = {
    "vocab_size": 400, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 8,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "unk_token_id": 1,
}  # fmt: skip
ADAPTER = {"lora_rank": 2, "lora_dropout": 0.0, "target_modules": r".*attention\.(q|out)"}
JOBS = {
    "all": [
        ranks.Case({"model_parallel": 2, "vocab_emb_dp": False}, SIZES),
        ranks.Case({"data_parallel": 2, "optimizer_shard": True}, SIZES),
        ranks.Case({"pipeline_stage": 2, "micro_batch_num": 2}, SIZES, 2),
    ],
    "adapter": [ranks.Case({"model_parallel": 2}, {**SIZES, "pet_config": ADAPTER})],
}
SUM = re.compile(r'= AllReduce\(.*group: "(\w+)-(\d+x\d+x\d+)')
SHAPE = re.compile(r"-> \(<Tensor\[Float32\], \(([\d, ]*)\)>")


def said(case: ranks.Case, stage: int) -> dict[str, tuple[int, int]]:
    """Group -> sums of one step and their bytes."""
    run = ranks.settings(SPEC, case)
    config, degrees = run.model.config, run.degrees
    run.runner_config.batch_size = ranks.ROWS // degrees.data_parallel // case.parts
    part = Partition(config, degrees, targets.shapes(SPEC, config))
    trained = targets.trained(part.shapes, config.pet_config)
    found: dict[str, tuple[int, int]] = {}
    for one in traffic.step(run, part, stage, trained):
        if one.operation == traffic.SUM:
            calls, size = found.get(one.group, (0, 0))
            found[one.group] = (calls + one.calls, size + one.size)
    return found


def done(folder: Path, layout: str) -> dict[str, tuple[int, int]]:
    """The same, of all graphs that a rank has compiled for some degrees."""
    calls, size = Counter(), Counter()
    for path in folder.rglob("*_validate_*.ir"):
        lines = path.read_text().splitlines()
        for line, types in zip(lines, lines[1:], strict=False):
            group = SUM.search(line)
            if group and group[2] == layout:
                shape = SHAPE.search(types)
                assert shape, types
                calls[group[1]] += 1
                size[group[1]] += 4 * prod(int(n) for n in shape[1].split(",") if n.strip())
    return {group: (calls[group], size[group]) for group in calls}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("cases", JOBS.values(), ids=JOBS)
def test_every_sum_of_a_step_is_foretold(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS", "1")
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS_PATH", str(tmp_path / "graphs"))
    ranks.run(SPEC, cases, tmp_path / "job")
    for case in cases:
        sizes = (case.degrees.get(key, 1) for key in ("data_parallel", "model_parallel"))
        stages = case.degrees.get("pipeline_stage", 1)
        layout = "x".join(map(str, (*sizes, stages)))
        for rank in range(2):
            found = done(tmp_path / "graphs" / f"rank_{rank}", layout)
            assert found == said(case, rank if stages > 1 else 0), case.degrees
