"""`python -m lm_glm2.preprocess`, the same as `lm preprocess glm2`."""

from lm_core.cli import run_verb
from lm_glm2 import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("preprocess", SPEC))
