"""`lm doctor`: a sound environment, and each thing that can be wrong with one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_core import cli
from lm_core.parallel import machine
from lm_core.tasks import doctor


@pytest.fixture
def sound(look, monkeypatch):
    """MindSpore loads, so that no test has to wait for it."""
    monkeypatch.setattr(doctor, "PROBE", 'print(\'{"version": "2.10.0", "device": "CPU"}\')')
    return monkeypatch


def report(capsys, status: int = 0, *words: str) -> str:
    assert cli.main(["doctor", *words]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_sound_environment(sound, capsys):
    text = report(capsys)
    assert text.splitlines()[-1] == "ready" and "wrong" not in text
    for what in ("python", "numpy", "lm-core", "lm-toy", "cpu", "memory", "here", "mindspore"):
        assert f" {what} " in text
    assert "2.10.0, computes on CPU" in text


def test_the_real_mindspore_is_found(capsys):
    """With the probe itself: it imports and computes."""
    finding = doctor._mindspore(120.0)
    assert (finding.state, "computes on" in finding.text) == ("ok", True), finding


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("import sys; sys.exit('no libascend.so')", "does not work: no libascend.so"),
        ("import os; os.abort()", "ended with status"),
        ("raise ImportError('half of it')", "does not work: ImportError: half of it"),
        ("import time; time.sleep(60)", "did not load within 0.5 s"),
    ],
)
def test_a_broken_mindspore_is_a_line(sound, capsys, probe, said):
    sound.setattr(doctor, "PROBE", probe)
    text = report(capsys, 2, *(["--timeout", "0.5"] if "sleep" in probe else []))
    assert said in text and "Traceback" not in text
    assert text.splitlines()[-1] == "1 problem(s) to mend"


def test_versions_that_do_not_fit(sound, capsys):
    versions = {"numpy": "2.1.0", "mindspore": "2.10.0", "mindspore-dev": "2.11"}
    sound.setattr(machine, "version", versions.get)
    sound.setattr(doctor, "PYTHONS", ((3, 1),))
    text = report(capsys, 2)
    assert "MindSpore needs 3.1; make another environment" in text
    assert "2.1.0 is installed; MindSpore needs 1.26" in text
    assert "mindspore 2.10.0, mindspore-dev 2.11 overwrite each other" in text
    assert "3 problem(s) to mend" in text


def test_another_mindspore_is_noted(sound, capsys):
    sound.setattr(doctor, "PROBE", 'print(\'noise\\n{"version": "2.9.1", "device": "CPU"}\')')
    assert "tested with 2.10.x only" in report(capsys)


def test_an_ascend_card_that_is_not_used(sound, capsys):
    sound.setattr(machine, "has_ascend", lambda: True)
    assert "install CANN and source its set_env.sh" in report(capsys)


def test_what_is_missing_says_what_it_is_for(sound, capsys):
    sound.setattr(doctor, "find_spec", lambda name: None if name != "mindspore" else object())
    text = report(capsys)
    assert "torch reads PyTorch .bin files; is not installed: pip install 'lm-core[torch]'" in text
    sound.setattr(doctor, "find_spec", lambda name: None)
    assert "mindspore      is not installed" in report(capsys, 2)


def test_packages_that_cannot_be_imported(sound, capsys):
    def broken():
        raise doctor.LmError("model bad: lm_bad:SPEC cannot be imported (no x); install it again")

    sound.setattr(doctor.registry, "installed", broken)
    assert "model bad: lm_bad:SPEC cannot be imported" in report(capsys, 2)


def test_noise_and_places(sound, capsys):
    sound.setenv("GLOG_v", "1")
    sound.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    sound.setattr(machine, "writable", lambda folder: folder != Path.cwd())
    text = report(capsys)
    assert "'1': MindSpore writes warnings all the time" in text
    assert "5 MiB free, cannot be written; write elsewhere with --output_dir" in text
    assert "5 MiB free; checkpoints need more" in text
    sound.setattr(machine, "writable", lambda folder: False)
    assert "cannot be written; set TMPDIR" in report(capsys, 2)


def test_it_starts_no_mindspore_itself():
    program = "import sys, lm_core.tasks.doctor; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
