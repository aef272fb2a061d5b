"""The reader of documents finds what it should, and fails when a command fails."""

from __future__ import annotations

import pytest
from documents import Block, Runner, blocks, commands, own_command

SAMPLE = """# Title

```bash
lm models   # all of them
python -m lm_x.predict \\
    --predict_data "a, b"
```

<!-- test: skip needs a cluster -->
```bash
launch
```

<!-- test: skip this excuse belongs to nothing -->
Words.

```python
print(1)
```
"""


def test_blocks(tmp_path):
    path = tmp_path / "sample.md"
    path.write_text(SAMPLE)
    first, second, third = blocks(path)
    assert (first.line, first.language, first.skip) == (3, "bash", "")
    assert second.skip == "needs a cluster"
    assert (third.language, third.text, third.skip) == ("python", "print(1)\n", "")
    assert commands(first.text) == [
        "lm models   # all of them",
        'python -m lm_x.predict --predict_data "a, b"',
    ]


def test_an_open_block_is_an_error(tmp_path):
    path = tmp_path / "sample.md"
    path.write_text("```bash\nls\n")
    with pytest.raises(AssertionError, match="not closed"):
        blocks(path)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("lm models   # all", ["models"]),
        (
            'python -m lm_x.predict --predict_data "a; b" c=1',
            ["predict", "x", "--predict_data", "a; b", "c=1"],
        ),
        ("python -m lm_x.predict | tail -n 1", None),
        ("LM_LOG=DEBUG lm models", None),
        ('lm predict x --predict_data "$HOME"', None),
        ("python tools/demo.py", None),
        ("ls", None),
    ],
)
def test_own_commands(command, arguments):
    assert own_command(command) == arguments


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "true\nfalse\n"),
        ("bash", "false | true\n"),
        ("bash", "for n in 1 2; do\nfalse\ndone\n"),
        ("python", "raise SystemExit(3)\n"),
        ("python", "1 / 0\n"),
    ],
)
def test_failures_name_the_block(tmp_path, language, text):
    block = Block(tmp_path / "sample.md", 12, language, text)
    with pytest.raises(AssertionError, match=r"sample\.md:12"):
        Runner(tmp_path).run(block)


def test_substitutions_come_first(tmp_path):
    block = Block(tmp_path / "sample.md", 1, "bash", "touch big\n")
    Runner(tmp_path, [("big", "small")]).run(block)
    assert (tmp_path / "small").exists()
