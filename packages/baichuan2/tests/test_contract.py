from dataclasses import replace
from pathlib import Path

from lm_baichuan2 import SPEC
from lm_core.testing.contract import ModelContract
from lm_core.testing.network import NetworkContract
from lm_core.testing.ranks import Case


class TestBaichuan2(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
    small = {**ModelContract.small, "intermediate_size": 48}

    def case(self, name: str) -> Case:
        """Half of the cases have linear biases, for six heads: 4 slopes of a series and 2 more."""
        found = super().case(name)
        if name not in ("dp2-tp2-pp2", "tp2", "dp2"):
            return found
        biases = {"position_embedding": "alibi", "hidden_size": 36, "num_heads": 6}
        return replace(found, sizes={**found.sizes, **biases})


class TestLinearBiases(NetworkContract):
    spec = SPEC
    sizes = {"position_embedding": "alibi", "hidden_size": 96, "num_heads": 6}
