"""`python -m lm_gpt2.export`, the same as `lm export gpt2`."""

from lm_core.cli import run_verb
from lm_gpt2 import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("export", SPEC))
