"""`python -m lm_glm2.serve`, the same as `lm serve glm2`."""

from lm_core.cli import run_verb
from lm_glm2 import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("serve", SPEC))
