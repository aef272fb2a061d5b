"""`python -m lm_pangualpha.transform`, the same as `lm transform pangualpha`."""

from lm_core.cli import run_verb
from lm_pangualpha import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("transform", SPEC))
