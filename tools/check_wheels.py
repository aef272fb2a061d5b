"""Checks built wheels as a user gets them: unpacked away from the sources, run from elsewhere.

    python tools/check_wheels.py DIST

The Python that runs this must have what the wheels depend on; the wheels come from DIST only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import sys
from pathlib import Path

site = Path(sys.argv[1])
import lm_core
from lm_core import spec

assert Path(lm_core.__file__).is_relative_to(site), lm_core.__file__
for name, found in spec.installed().items():
    assert found.configs.is_relative_to(site), found.configs
    assert found.run_names(), f"lm-{name}: no run files in the wheel"
    print(f"lm-{name}: presets {', '.join(found.presets)}; runs {', '.join(found.run_names())}")
"""


def main(dist: Path) -> int:
    """Returns 0 when every project of the workspace has a wheel and all of them work."""
    projects = [
        ROOT / "core",
        *sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")),
    ]
    wheels = sorted(dist.glob("*.whl"))
    if len(wheels) != len(projects):
        print(f"{dist}: {len(wheels)} wheels for {len(projects)} projects", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch).resolve()
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(site)
            print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")
        run(site, "-c", PROBE, str(site))
        run(site, "-m", "lm_core.cli", "models")
        for path in sorted(site.glob("lm_*/pretrain.py")):
            run(site, "-m", f"{path.parent.name}.pretrain", "--help")
    return 0


def run(site: Path, *arguments: str) -> None:
    """Runs Python with the unpacked wheels first on its path, from `/`."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd="/", env=environment, capture_output=True, text=True
    )
    shown = " ".join(word for word in arguments if "\n" not in word)
    if done.returncode:
        sys.exit(f"{shown}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    print(done.stdout.strip() if "-c" in arguments else f"{shown}: ok")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
