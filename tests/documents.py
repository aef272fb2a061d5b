"""The fenced blocks of a Markdown file, and running them as a reader would, one after the other.

Starting Python and MindSpore takes seconds, so `lm VERB ...`, `python -m lm_x.verb ...` and Python
snippets run in this process; every other line of shell runs in bash.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

SKIP = re.compile(r"<!-- test: skip (.+?) -->")
NAMED = re.compile(r"# (\w+\.(?:py|yaml))\n")  # the first line of what is a file
FENCE = re.compile(r"^\s*```(\w*)\s*$")
TESTED = ("bash", "python", "yaml")
SCRIPT = re.compile(r"^\s*(for|while|if|cd|export|\w+=)", re.MULTILINE)
SHELL_SYNTAX = re.compile(r"[|&;<>$`*]|^\w+=")


@dataclass(frozen=True)
class Block:
    """One fenced block. `skip` is the reason why it is not run, "" if it is."""

    file: Path
    line: int
    language: str
    text: str
    skip: str = ""

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"


def blocks(file: Path) -> list[Block]:
    """All blocks of a file; a comment `<!-- test: skip WHY -->` on the line before excuses one."""
    found: list[Block] = []
    reason, start, language, body = "", 0, "", []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if start and fence:
            found.append(Block(file, start, language, "\n".join(body) + "\n", reason))
            reason, start, body = "", 0, []
        elif start:
            body.append(line)
        elif fence:
            start, language = number, fence[1]
        elif excuse := SKIP.search(line):
            reason = excuse[1]
        elif line.strip():
            reason = ""
    assert not start, f"{file}:{start}: the block is not closed"
    return found


@dataclass(frozen=True)
class Runner:
    """Runs blocks in `folder`, after the substitutions that make them small."""

    folder: Path
    substitutions: Sequence[tuple[str, str]] = ()

    def run(self, block: Block) -> None:
        """Raises AssertionError with the place in the document if a command fails."""
        text = self.substituted(block.text)
        try:
            if block.language == "python":
                self._python(block, text)
            elif block.language == "yaml":
                self._yaml(block, text)
            elif SCRIPT.search(text):
                self._shell(text)
            else:
                for command in commands(text):
                    self._command(command)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {type(error).__name__}: {error}\n{text}") from error

    def substituted(self, text: str) -> str:
        for pattern, replacement in self.substitutions:
            text = re.sub(pattern, replacement, text)
        return text

    def _python(self, block: Block, text: str) -> None:
        script = self._file(block, text, "py")
        with mock.patch.object(sys, "argv", [str(script)]):
            runpy.run_path(str(script), run_name="__main__")

    def _yaml(self, block: Block, text: str) -> None:
        from lm_core import LmConfig

        LmConfig(self._file(block, text, "yaml"))

    def _file(self, block: Block, text: str, ending: str) -> Path:
        named = NAMED.match(text)
        path = self.folder / (named[1] if named else f"{block.file.stem}_{block.line}.{ending}")
        path.write_text(text, encoding="utf-8")
        return path

    def _command(self, command: str) -> None:
        from lm_core.cli import main

        arguments = own_command(command)
        if arguments is None:
            self._shell(command)
        else:
            status = main(arguments)
            assert status == 0, f"{command}: exit status {status}"

    def _shell(self, script: str) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        shell = ["bash", "-euo", "pipefail", "-c", script]
        subprocess.run(
            shell, cwd=self.folder, env={**os.environ, "PATH": path}, check=True, timeout=200
        )


def commands(text: str) -> list[str]:
    """The commands of a shell block, continued lines joined, comments left out."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def own_command(command: str) -> list[str] | None:
    """What `lm_core.cli.main` gets for a command of ours; None for any other."""
    if SHELL_SYNTAX.search(re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command)):
        return None
    words = shlex.split(command, comments=True)
    if words[:1] == ["lm"]:
        return words[1:]
    module = re.fullmatch(r"lm_(\w+)\.(\w+)", words[2]) if words[:2] == ["python", "-m"] else None
    return [module[2], module[1], *words[3:]] if module else None
