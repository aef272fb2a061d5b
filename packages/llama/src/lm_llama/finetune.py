"""`python -m lm_llama.finetune`, the same as `lm finetune llama`."""

from lm_core.cli import run_verb
from lm_llama import SPEC

if __name__ == "__main__":
    raise SystemExit(run_verb("finetune", SPEC))
