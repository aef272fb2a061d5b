"""`python -m lm_llama.predict`, the same as `lm predict llama`."""

from lm_core.cli import run_verb
from lm_llama import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("predict", SPEC))
