from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_llama import SPEC


class TestLlama(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
    # One head of keys and values, which several ranks then hold.
    small = {**ModelContract.small, "n_kv_heads": 1, "intermediate_size": 48}
