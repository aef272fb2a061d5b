from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_llama import SPEC


class TestLlama(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
