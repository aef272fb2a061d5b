"""`python -m lm_pangualpha.convert`, the same as `lm convert pangualpha`."""

from lm_core.cli import run_verb
from lm_pangualpha import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("convert", SPEC))
