"""`python -m lm_pangualpha.export`, the same as `lm export pangualpha`."""

from lm_core.cli import run_verb
from lm_pangualpha import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("export", SPEC))
