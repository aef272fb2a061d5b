from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_pangualpha import SPEC


class TestPanguAlpha(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
