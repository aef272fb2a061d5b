"""The commands as a user finds them: each file that is one is for its own verb, and says so."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

import lm_llama
from lm_core.cli import VERBS

FILES = {
    path.stem: path
    for path in sorted(Path(lm_llama.__file__).parent.glob("*.py"))
    if "run_verb(" in path.read_text(encoding="utf-8")
}


def test_all_verbs_of_a_model_are_there():
    # `lm config` looks at runs of all models; what is exported is not part of this version.
    assert set(FILES) == set(VERBS) - {"config", "export"}


@pytest.mark.parametrize("verb", FILES)
def test_help(verb, capsys, monkeypatch):
    """`python -m lm_llama.VERB --help`: of this verb and this model, and of no other one."""
    monkeypatch.setattr(sys, "argv", [str(FILES[verb]), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FILES[verb]), run_name="__main__")
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert re.match(rf"usage: python -m lm_llama\.{verb} ", shown)
    assert f"llama: {VERBS[verb]}" in shown
    assert "gpt" not in shown.lower()
