"""`python -m lm_baichuan2.serve`, the same as `lm serve baichuan2`."""

from lm_baichuan2 import SPEC
from lm_core.cli import run_verb

if __name__ == "__main__":
    raise SystemExit(run_verb("serve", SPEC))
