"""Running the READMEs of the repository, made small."""

from __future__ import annotations

from pathlib import Path

from documents import TESTED, Runner, blocks

from lm_core.launch.job import free_port

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = [
    (r"--max_steps (200|50)", "--max_steps 2"),
    (r"--max_steps 1000", "--max_steps 4"),
    (r"(?<= )((?:packages|tools)/\S+\.(?:sh|py))", rf"{ROOT}/\1"),
    (r"--master_port=8119", f"--master_port={free_port()}"),
    (r"ssh \S+ (\"[^\"]*\") &", r"bash -c \1"),  # every machine is this one
]


def run_all(
    document: Path,
    folder: Path,
    smaller: list[tuple[str, str]],
    leave_out: str | None = None,
) -> None:
    """Runs the blocks, but those that hold `leave_out`."""
    reader = Runner(folder, [*smaller, *EVERYWHERE])
    ran = [
        block
        for block in blocks(document)
        if block.language in TESTED
        and not block.skip
        and (leave_out is None or leave_out not in block.text)
    ]
    assert ran or document.name == "CONTRIBUTING.md"
    for block in ran:
        reader.run(block)
