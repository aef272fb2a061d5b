"""GPT-2: what `lm_core` needs to train it, load it and talk to it. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.spec import LazyMapping, ModelSpec
from lm_gpt2.config import PRESETS, Gpt2Config

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_gpt2.model import Gpt2
    from lm_gpt2.tokenizer import Gpt2Tokenizer

__version__ = "0.1.0"


def _build(config: Gpt2Config, context: ParallelContext) -> Gpt2:
    from lm_gpt2.model import Gpt2

    return Gpt2(config, context)


def _tokenizer(directory: Path) -> Gpt2Tokenizer:
    from lm_gpt2.tokenizer import Gpt2Tokenizer

    return Gpt2Tokenizer.from_pretrained(directory)


SPEC = ModelSpec(
    name="gpt2",
    config_class=Gpt2Config,
    presets=PRESETS,
    build=_build,
    hf_types=("gpt2",),
    tables=LazyMapping[Any]("lm_gpt2.weights:TABLES"),
    tokenizer=_tokenizer,
    preprocessors=LazyMapping[Any]("lm_gpt2.data:PREPROCESSORS"),
    configs=Path(__file__).parent / "configs",
)
