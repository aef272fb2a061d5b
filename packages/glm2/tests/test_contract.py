from dataclasses import replace
from pathlib import Path

from lm_core.testing.contract import ModelContract
from lm_core.testing.ranks import Case
from lm_glm2 import SPEC


class TestGlm2(ModelContract):
    spec = SPEC
    goldens = Path(__file__).parent / "goldens"
    # Heads wider than hidden_size / num_heads.
    small = {**ModelContract.small, "kv_channels": 12, "intermediate_size": 48}

    def case(self, name: str) -> Case:
        """Two groups on two ranks, and one group that two ranks share."""
        found = super().case(name)
        groups = 1 if name in ("dp2-tp2", "tp2-lora") else 2
        return replace(found, sizes={**found.sizes, "multi_query_group_num": groups})
