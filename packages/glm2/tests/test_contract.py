from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_glm2 import SPEC


class TestGlm2(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
