from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_core.testing.distributed import ALL_CASES
from lm_gpt2 import SPEC


class TestGpt2(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
    cases = ALL_CASES
