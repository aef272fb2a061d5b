"""packages/NAME/launch.sh finds the right Python, and says so where there is none."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sources import PACKAGES, ROOT

SYSTEM = ("bash", "dirname", "basename")


@pytest.fixture
def call(tmp_path):
    """Runs a copy of the script, in a folder like the repository, with nothing on PATH."""
    folder = tmp_path / "packages" / "gpt2"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "packages/gpt2/launch.sh", folder)
    (tmp_path / "bin").mkdir()
    for name in SYSTEM:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))

    def run(**settings: str) -> subprocess.CompletedProcess:
        kept = ("PYTHONPATH", "HOME", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {"PATH": str(tmp_path / "bin"), "DRY_RUN": "1"} | settings
        return subprocess.run(
            ["bash", str(folder / "launch.sh"), "predict", "--predict_data", "a b"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def put_python(path: Path) -> None:
    """A Python that can import our packages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{shutil.which("sh")}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)


def started(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


WORDS = [sys.executable, "-m", "lm_gpt2.predict", "--predict_data", "a b"]


def test_python_where_it_is_named(call):
    assert started(call(PYTHON=sys.executable)) == WORDS


@pytest.mark.parametrize("place", ["env/bin/python", ".venv/bin/python", "bin/python3"])
def test_python_of_an_environment_and_of_the_path(call, tmp_path, place):
    put_python(tmp_path / place)
    settings = {"VIRTUAL_ENV": str(tmp_path / "env")} if place.startswith("env") else {}
    assert started(call(**settings)) == WORDS


def test_python_of_hatch(call, tmp_path):
    """hatch knows the environment from the root of the repository only."""
    put_python(tmp_path / "hidden/bin/python")
    hatch = tmp_path / "bin" / "hatch"
    hatch.write_text(
        f'#!{shutil.which("sh")}\n[ "$PWD $*" = "{tmp_path} env find default" ] && '
        f"echo {tmp_path}/hidden\n"
    )
    hatch.chmod(0o755)
    assert started(call()) == WORDS


def test_no_python(call):
    for done, what in (
        (call(), "error: python: none found that can import lm_core and lm_gpt2;"),
        (call(PYTHON="/no/python"), "error: PYTHON: /no/python cannot import lm_core"),
    ):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(what)


def test_a_python_without_our_packages_is_passed_over(call, tmp_path):
    put_python(tmp_path / ".venv/bin/python")
    bare = tmp_path / "env/bin/python"
    bare.parent.mkdir(parents=True)
    bare.write_text(f"#!{shutil.which('sh')}\nexit 1\n")
    bare.chmod(0o755)
    assert started(call(VIRTUAL_ENV=str(tmp_path / "env"))) == WORDS


def test_every_package_has_the_same_script():
    scripts = {(package / "launch.sh").read_bytes() for package in PACKAGES}
    assert len(scripts) == 1
    assert all(os.access(package / "launch.sh", os.X_OK) for package in PACKAGES)
