"""`lm checkpoint verify|list`: what it prints, and with which status it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_core.checkpoint import atomic
from lm_core.cli import main


def save(path: Path, step: int, **values) -> Path:
    with atomic.new_directory(path) as scratch:
        (scratch / "training.json").write_text(json.dumps({"step": step}))
        (scratch / "model.safetensors").write_bytes(b"x" * 12_000)
        lines = [{"step": n, "loss": 3.0 - n / 100} for n in range(1, step + 1)]
        lines += [{"step": step, **values}] if values else []
        (scratch / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    for step in (50, 100):
        save(tmp_path / "out" / "checkpoint" / "rank_0" / f"CKP-{step}", step)
    return tmp_path / "out"


def lines(capsys) -> tuple[list[str], list[str]]:
    text = capsys.readouterr()
    return text.out.splitlines(), text.err.splitlines()


def test_verify_all_is_well(run, capsys):
    assert main(["checkpoint", "verify", str(run)]) == 0
    out, err = lines(capsys)
    folder = run / "checkpoint" / "rank_0"
    assert [line.split(", ")[0] for line in out] == [f"{folder}/CKP-{n}: ok" for n in (50, 100)]
    assert "3 files, 1" in out[0] and not err
    assert main(["checkpoint", "verify", str(folder / "CKP-50")]) == 0
    assert len(lines(capsys)[0]) == 1


def test_verify_names_every_damaged_file(run, capsys):
    folder = run / "checkpoint" / "rank_0"
    (folder / "CKP-50" / "training.json").write_text("{}")
    (folder / "CKP-100" / "model.safetensors").write_bytes(b"x" * 11_999 + b"y")
    (folder / "CKP-100" / "metrics.jsonl").unlink()
    good = save(folder / "CKP-101", 101)
    assert main(["checkpoint", "verify", str(run)]) == 2
    out, err = lines(capsys)
    assert len(out) == 1 and out[0].startswith(f"{good}: ok")
    damaged = ["CKP-50/training.json", "CKP-100/metrics.jsonl", "CKP-100/model.safetensors"]
    assert [line.split(": ")[1] for line in err] == [f"{folder}/{name}" for name in damaged]
    assert all(line.startswith("error: ") for line in err)


def test_list(run, capsys):
    folder = run / "checkpoint" / "rank_0"
    save(folder / "CKP-200", 200, eval_loss=1.25, eval_ppl=3.49)
    (folder / "CKP-100" / "model.safetensors").write_bytes(b"")
    assert main(["checkpoint", "list", str(run)]) == 0
    head, *rows = [line.split() for line in lines(capsys)[0]]
    assert head == ["step", "saved", "size", "loss", "held", "out", "state", "checkpoint"]
    found = [(row[0], *row[5:]) for row in rows]
    assert found == [
        ("50", "2.5000", "-", "ok", f"{folder}/CKP-50"),
        ("100", "2.0000", "-", "damaged", f"{folder}/CKP-100"),
        ("200", "1.0000", "1.2500", "ok", f"{folder}/CKP-200"),
    ]
    assert rows[2][1].count("-") == 2 and rows[2][2].count(":") == 2 and rows[2][4] == "KB"


@pytest.mark.parametrize("gone", ["training.json", "metrics.jsonl", "manifest.json"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{\xff"])
def test_list_reads_what_is_damaged(run, capsys, gone, content):
    file = run / "checkpoint" / "rank_0" / "CKP-100" / gone
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert main(["checkpoint", "list", str(run)]) == 0
    row = lines(capsys)[0][2].split()
    assert row[0] == "100" and "damaged" in row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "nowhere: is no directory; a checkpoint has a manifest.json"),
        (["list", "."], ".: holds no checkpoint"),
        (["verify", ".", "--quick"], "--quick: unknown argument"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", *words]) == 2
    out, (line,) = lines(capsys)
    assert message in line and not out


def test_without_mindspore(run):
    script = (
        "import sys; from lm_core.cli import main; status = main(sys.argv[1:]);"
        "assert 'mindspore' not in sys.modules; sys.exit(status)"
    )
    for action in ("verify", "list"):
        words = [sys.executable, "-c", script, "checkpoint", action, str(run)]
        assert subprocess.run(words, timeout=60, capture_output=True).returncode == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["checkpoint", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "verify" in out and "list" in out
    assert main(["--help"]) == 0
    assert "checkpoint  verify or list" in capsys.readouterr().out
    assert main(["checkpont"]) == 2
    assert "did you mean checkpoint?" in capsys.readouterr().err
