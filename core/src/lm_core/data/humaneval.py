"""HumanEval (Chen et al. 2021): problems, programs made of a prompt and its completion, cutting.

Files of other problems in the same form are read alike.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_core.data import jsonlines
from lm_core.errors import DataError

_FIELDS = ("task_id", "prompt", "entry_point", "test")
SAMPLE_FIELDS = ("task_id", "completion")
_BREAKS = (tokenize.NEWLINE, tokenize.NL)
_LEVELS = (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt that ends inside a function, and the source of a test `check(candidate)` for it."""

    task_id: str
    prompt: str
    entry_point: str
    test: str

    def program(self, completion: str) -> str:
        """The source that is judged.

        A completion is what follows the prompt, or it repeats the prompt, or it is a whole module
        that defines the function; the latter two are told by their text: the prompt at the
        beginning, or a syntax tree of their own with the function at its top. A body is none,
        since it begins indented. A whole module still gets what the prompt defines before it.
        """
        if completion.strip().startswith(self.prompt.strip()):
            return completion.lstrip()
        if self._is_whole(completion):
            return f"{self._preamble()}\n{completion}"
        return self.prompt + completion

    def _is_whole(self, completion: str) -> bool:
        try:
            tree = ast.parse(completion)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        return any(isinstance(n, functions) and n.name == self.entry_point for n in tree.body)

    def _preamble(self) -> str:
        """The prompt's lines before the function: imports and helpers."""
        found = list(re.finditer(rf"^(async )?def {self.entry_point}\b", self.prompt, re.MULTILINE))
        return self.prompt[: found[-1].start()] if found else ""


def read_problems(path: str | Path) -> dict[str, Problem]:
    """The problems of a file, by their ids, in its order.

    Raises:
        DataError: no problem, or lines that are none or come twice.
    """
    found: dict[str, Problem] = {}
    prompts: dict[str, str] = {}
    for record in jsonlines.read(path, _FIELDS):
        problem = Problem(**{name: record[name] for name in _FIELDS})
        other = prompts.setdefault(problem.prompt, problem.task_id)
        if problem.task_id in found or other != problem.task_id:
            raise DataError(
                f"{path}: {problem.task_id} repeats the id or the prompt of {other}; each must "
                f"come once; remove one"
            )
        found[problem.task_id] = problem
    if not found:
        raise DataError(f"{path}: holds no problem; must have one a line; choose another file")
    return found


def cut(prompt: str, text: str) -> str:
    """A model's continuation of a prompt, up to where the function ends.

    Models that only continue texts go on after the function: with tests, with the next function.
    Chen et al. stop at a line that begins with `class`, `def`, `#`, `if` or `print`; here any line
    that begins in the first column ends the function, unless it is inside a string or brackets. As
    there, helpers that come after the function are lost, and a program that needs them fails.
    The first line always belongs to the function.
    """
    end = next(_ends(prompt, text), len(text))
    return text[:end]


def _ends(prompt: str, text: str) -> Iterator[int]:
    """Where lines begin in the first column that are not inside something."""
    source = prompt + text
    first = len(prompt) + text.find("\n") + 1 if "\n" in text else len(source)
    starts = [0, *(match.end() for match in re.finditer("\n", source))]
    known = depth = 0
    fresh = True
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            row, column = token.start
            if token.type in _LEVELS:
                continue
            if fresh and column == 0 and token.type not in _BREAKS and starts[row - 1] >= first:
                yield starts[row - 1] - len(prompt)
            depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
            fresh = token.type in _BREAKS and depth <= 0
            known = starts[min(token.end[0], len(starts) - 1)]
        return
    except (tokenize.TokenError, SyntaxError) as error:
        # Open brackets and long strings hold all that follows; otherwise lines must tell.
        if depth > 0 or "EOF" in str(error) or "triple-quoted" in str(error):
            return
    for match in re.compile(r"^\S", re.MULTILINE).finditer(source, max(known, first)):
        yield match.start() - len(prompt)
