"""`python -m lm_gpt2.serve`, the same as `lm serve gpt2`."""

from lm_core.cli import run_verb
from lm_gpt2 import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("serve", SPEC))
