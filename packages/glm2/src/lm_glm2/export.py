"""`python -m lm_glm2.export`, the same as `lm export glm2`."""

from lm_core.cli import run_verb
from lm_glm2 import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("export", SPEC))
