"""`python -m lm_pangualpha.preprocess`, the same as `lm preprocess pangualpha`."""

from lm_core.cli import run_verb
from lm_pangualpha import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("preprocess", SPEC))
