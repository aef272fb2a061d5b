"""`python -m lm_llama.convert`, the same as `lm convert llama`."""

from lm_core.cli import run_verb
from lm_llama import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("convert", SPEC))
