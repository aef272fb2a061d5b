"""Problems, what becomes a program, and where a function ends."""

from __future__ import annotations

import json

import pytest
from outside import DATA

from lm_core.data.humaneval import Problem, cut, read_problems
from lm_core.errors import DataError

PROMPT = 'from math import pi\n\ndef twice(x):\n    return 2 * x\n\ndef f(x):\n    """Do."""\n'
PROBLEM = Problem("t/0", PROMPT, "f", "")


def result(source: str):
    space = {}
    exec(source, space)
    return space["f"](3)


@pytest.mark.parametrize(
    "completion",
    [
        "    return twice(x)\n",
        PROMPT + "    return twice(x)\n",
        "\n" + PROMPT.strip() + "\n    return twice(x)",
        "def f(x):\n    return twice(x) + 0 * pi\n",
        "import os\ndef other(x):\n    return 2 * x\ndef f(x):\n    return other(x)\n",
        "    return g(x)\n\ndef g(x):\n    return 6\n",
        "    return 6\n\ndef f(x):\n    return 6\n",
    ],
)
def test_each_form_of_a_completion_becomes_a_program(completion):
    assert result(PROBLEM.program(completion)) == 6


def test_what_is_no_module_follows_the_prompt():
    for text in ("return 1", "def g(x):\n    return 1", "", "(" * 300, "\0"):
        assert PROBLEM.program(text) == PROMPT + text


BODY = "    return 1\n"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (BODY, BODY),
        (BODY + "\n\ndef g():\n    pass\n", BODY + "\n\n"),
        (BODY + "class A: pass", BODY),
        (BODY + "# next", BODY),
        (BODY + "if x:\n", BODY),
        (BODY + "print(f(2))", BODY),
        (BODY + "@cache\n", BODY),
        (BODY + "```\n", BODY),
        (BODY + "\u00e9t\u00e9", BODY),
        (BODY + "$$", BODY),
        ("    # note\n\n" + BODY, "    # note\n\n" + BODY),
        ("    x = '''\ndef g\n'''\n    return x\nx", "    x = '''\ndef g\n'''\n    return x\n"),
        ("    x = [\n1,\n]\n    return x\nx", "    x = [\n1,\n]\n    return x\n"),
        ("    x = 1 + \\\n2\nx", "    x = 1 + \\\n2\n"),
        ("    x = 'open\nprint(1)\n", "    x = 'open\n"),
        ("        deep\n      odd\n    x\nx", "        deep\n      odd\n    x\n"),
        ("    x = (1\ndef g(): pass\n", "    x = (1\ndef g(): pass\n"),
        ("    x = '''\ndef g(): pass\n", "    x = '''\ndef g(): pass\n"),
        ("    x = 1)\n    y\ndef g(): pass\n", "    x = 1)\n    y\n"),
        ("def f(x):\n    return 1\nprint()", "def f(x):\n    return 1\n"),
        ("", ""),
        ("\n\nx", "\n\n"),
    ],
)
def test_a_function_ends_at_the_first_column(text, kept):
    assert cut(PROMPT, text) == kept
    assert cut("", text) == kept


def test_cutting_as_text_grows_agrees_with_cutting_the_whole():
    """What generation asks after each token: once cut, always cut at the same place."""
    text = (
        "    x = '''\n# a\n'''\n    y = {\n'a': 1}\n    return x\n\ndef g():\n    pass\nprint(1)\n"
    )
    whole = cut(PROMPT, text)
    assert whole.endswith("return x\n\n")
    for end in range(len(text) + 1):
        assert cut(PROMPT, text[:end]) == whole[:end]


def test_problems_keep_their_order_and_come_once(tmp_path):
    def line(name, prompt):
        fields = {"task_id": name, "prompt": prompt, "entry_point": "f", "test": "", "more": 1}
        return json.dumps(fields) + "\n"

    path = tmp_path / "p"
    path.write_text(line("b", "1") + line("a", "2"))
    assert list(read_problems(path)) == ["b", "a"]
    for again in (line("b", "3"), line("c", "2")):
        path.write_text(line("b", "1") + line("a", "2") + again)
        with pytest.raises(DataError, match="repeats the id or the prompt of"):
            read_problems(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no problem"):
        read_problems(path)


PROBLEMS = DATA / "humaneval" / "HumanEval.jsonl.gz"


@pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"{PROBLEMS} is not here")
def test_canonical_solutions_are_not_cut():
    from lm_core.data import jsonlines

    problems = read_problems(PROBLEMS)
    solutions = jsonlines.read(PROBLEMS, ["canonical_solution"])
    assert len(problems) == 164
    for problem, record in zip(problems.values(), solutions, strict=True):
        solution = record["canonical_solution"]
        assert cut(problem.prompt, solution) == solution
        assert cut(problem.prompt, solution + "\nprint(1)") == solution + "\n"
        assert problem.program(problem.prompt + solution) == problem.program(solution).lstrip()
