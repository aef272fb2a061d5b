"""`python -m lm_llama.serve`, the same as `lm serve llama`."""

from lm_core.cli import run_verb
from lm_llama import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("serve", SPEC))
