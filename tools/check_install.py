"""Installs built wheels as users do: each in a fresh environment, with nothing else.

    python tools/check_install.py DIST [--python 3.11 3.12] [--package lm-gpt2 ...] [--pip]

Wheels of this project come from DIST only, what they depend on from the index. In each environment
the dependencies must agree, PyTorch and transformers must not be there, and the commands must run
from a folder outside of the sources; with lm-gpt2 a tiny model is trained, asked and converted.
Environments are made by uv, which comes with hatch and links files that it has; with `--pip` by
venv and pip, which takes half a minute and 2.8 GB for each.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
ABSENT = {"torch", "transformers", "peft", "tensorflow", "jax"}
ALIKE = ("Version", "License-Expression", "License-File", "Requires-Python", "Classifier")
EXTRAS = ("serve", "plot", "tensorboard", "hub")
"""Those that are light, and what they bring."""
IMPORTS = ("lm_core", "starlette", "uvicorn", "matplotlib", "tensorboardX", "huggingface_hub")

RUNS = """
import sys
from lm_core import spec

found = spec.installed()
assert list(found) == sys.argv[1:], list(found)
for name, model in found.items():
    assert model.run_names(), f"lm-{name}: no run files in the wheel"
"""
VOCABULARY = """
from pathlib import Path
from lm_core.tokenizer.bpe import train_bpe
from lm_gpt2.tokenizer import Gpt2Tokenizer

text = Path("text.txt").read_text(encoding="utf-8")
Gpt2Tokenizer(*train_bpe([text], 500)).save_pretrained("tokenizer")
"""
FIRST_USE = """
preprocess text --input_file text.txt --output_file a.mindrecord --max_length 33 --tokenizer tokenizer
pretrain --config gpt2_tiny --train_dataset_dir a.mindrecord --tokenizer tokenizer --output_dir run
    --max_steps 3 --batch_size 2 model.model_config.seq_length=32 model.model_config.vocab_size=501
predict --load_checkpoint run --predict_data The --max_new_tokens 5
convert --input run --output hf --format hf
"""  # noqa: E501


def main() -> int:
    """Returns 0 when every package can be installed and used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="folder with the wheels, as hatch builds them")
    running = [sys.executable]
    parser.add_argument("--python", nargs="+", default=running, help="versions, or programs")
    parser.add_argument("--package", nargs="+", default=[], help="which ones; all without it")
    parser.add_argument("--pip", action="store_true", help="venv and pip in place of uv")
    args = parser.parse_args()
    names = check_metadata(args.dist)
    for version in args.python:
        for name in args.package or [*names, f"lm-core[{','.join(EXTRAS)}]"]:
            with tempfile.TemporaryDirectory() as scratch:
                started = time.monotonic()
                place = Environment(Path(scratch).resolve(), version, args.pip)
                place.install(args.dist.resolve(), name)
                size = place.check()
                used = place.use(name)
                took = time.monotonic() - started
                print(f"{place.python}, {name}: {size}; {used}; {took:.0f} s", flush=True)
    return 0


def check_metadata(dist: Path) -> list[str]:
    """Prints what the wheels weigh; they must say the same of license, Python and version.

    Returns:
        the names of the packages with a model.
    """
    found = {}
    for wheel in sorted(dist.glob("*.whl")):
        with ZipFile(wheel) as file:
            (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = message_from_string(file.read(name).decode("utf-8"))
            folder = name.rpartition("/")[0]
            text = (ROOT / "LICENSE").read_bytes()
            require(file.read(f"{folder}/licenses/LICENSE") == text, f"{wheel.name}: its license")
            entries = file.read(f"{folder}/entry_points.txt").decode("utf-8")
        require(len(str(metadata.get_payload())) > 1000, f"{wheel.name}: holds no README")
        found[metadata["Name"]] = metadata
        if (model := metadata["Name"].removeprefix("lm-")) != "core":
            require(f"{model} = lm_{model}:SPEC" in entries, f"{wheel.name}: {entries}")
            pinned = f"lm-core=={metadata['Version']}"
            require(metadata.get_all("Requires-Dist") == [pinned], f"{wheel.name}: not {pinned}")
        else:
            require("lm = lm_core.cli:entry" in entries, f"{wheel.name}: {entries}")
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")
    projects = [ROOT / "core", *(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))]
    require(len(found) == len(projects), f"{dist}: {len(found)} wheels for {len(projects)}")
    for key in ALIKE:
        values = {str(metadata.get_all(key)) for metadata in found.values()}
        require(len(values) == 1 and "None" not in values, f"{key}: is not alike: {values}")
    return sorted(found.keys() - {"lm-core"})


class Environment:
    """A virtual environment in a folder of its own."""

    def __init__(self, scratch: Path, version: str, pip: bool) -> None:
        """Makes it, empty."""
        self.work, self.bin = scratch / "work", scratch / "venv" / "bin"
        self.work.mkdir()
        self.pip = ["pip"] if pip else ["uv", "pip"]
        self.own = [] if pip else ["--python", str(self.bin / "python")]
        program = shutil.which(version if "/" in version else f"python{version}")
        require(program, f"{version}: no such Python on PATH; name one by its file")
        maker = [str(program), "-m", "venv"] if pip else ["uv", "venv", "-q", "-p", str(program)]
        require(shutil.which(maker[0]), "uv: is not on PATH; it comes with hatch; or add --pip")
        self._run(*maker, str(self.bin.parent))
        self.python = self._run("python", "--version").strip()

    def install(self, dist: Path, name: str) -> None:
        """The package and what it needs; of this project nothing that an index may have."""
        project, bracket, extras = name.partition("[")
        core, own = (
            next(dist.glob(f"{one.replace('-', '_')}-*.whl")) for one in ("lm-core", project)
        )
        files = [f"{core}{bracket}{extras}"] if own == core else [str(core), str(own)]
        self._run(*self.pip, "install", "-q", *self.own, *files)

    def check(self) -> str:
        """How much there is; the versions must agree, and some things must not be there."""
        self._run(*self.pip, "check", *self.own)
        listed = self._run(*self.pip, "list", *self.own, "--format", "freeze")
        names = set(re.findall(r"^([\w.-]+)==", listed, re.MULTILINE)) - {"pip", "setuptools"}
        require(not names & ABSENT, f"{names & ABSENT} came with it")
        files = [path for path in self.bin.parent.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)
        return f"{len(names)} distributions, {size / 1e6:,.0f} MB"

    def use(self, name: str) -> str:
        """Runs the commands, from a folder of its own."""
        model = re.sub(r"^lm-|\[.*", "", name)
        self._run("lm", "models")
        if model == "core":
            modules = IMPORTS if "[" in name else IMPORTS[:1]
            self._run("python", "-c", f"import {', '.join(modules)}")
            return "lm models, imports"
        self._run("python", "-c", RUNS, model)
        self._run("python", "-m", f"lm_{model}.pretrain", "--help")
        if model != "gpt2":
            return "lm models, --help"
        shutil.copy(ROOT / "CONTRIBUTING.md", self.work / "text.txt")
        self._run("python", "-c", VOCABULARY)
        for line in FIRST_USE.replace("\n    ", " ").split("\n")[1:-1]:
            verb, *words = line.split()
            self._run("python", "-m", f"lm_gpt2.{verb}", *words)
        return "trained, predicted, converted"

    def _run(self, *command: str) -> str:
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "GLOG_v": "3"}
        done = subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(
                f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout


def require(fine: object, problem: str) -> None:
    """Ends with one line where something is not as it must be."""
    if not fine:
        sys.exit(problem)


if __name__ == "__main__":
    sys.exit(main())
