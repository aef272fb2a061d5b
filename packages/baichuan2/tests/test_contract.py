from pathlib import Path

from lm_baichuan2 import SPEC
from lm_core.testing.contract import ModelContract


class TestRotary(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
    small = {**ModelContract.small, "intermediate_size": 48}
