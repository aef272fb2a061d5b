"""`python -m lm_baichuan2.convert`, the same as `lm convert baichuan2`."""

from lm_baichuan2 import SPEC
from lm_core.cli import run_verb

if __name__ == "__main__":
    raise SystemExit(run_verb("convert", SPEC))
