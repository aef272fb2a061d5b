"""`python -m lm_pangualpha.serve`, the same as `lm serve pangualpha`."""

from lm_core.cli import run_verb
from lm_pangualpha import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("serve", SPEC))
