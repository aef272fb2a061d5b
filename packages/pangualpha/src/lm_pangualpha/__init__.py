"""PanGu-alpha: what `lm_core` needs to train it, load it and use it. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.spec import LazyMapping, ModelSpec
from lm_pangualpha.config import PRESETS, PanguAlphaConfig

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_pangualpha.model import PanguAlpha
    from lm_pangualpha.tokenizer import PanguAlphaTokenizer

__version__ = "0.1.0"


def _build(config: PanguAlphaConfig, context: ParallelContext) -> PanguAlpha:
    from lm_pangualpha.model import PanguAlpha

    return PanguAlpha(config, context)


def _tokenizer(directory: Path) -> PanguAlphaTokenizer:
    from lm_pangualpha.tokenizer import PanguAlphaTokenizer

    return PanguAlphaTokenizer.from_pretrained(directory)


SPEC = ModelSpec(
    name="pangualpha",
    config_class=PanguAlphaConfig,
    presets=PRESETS,
    build=_build,
    hf_types=("gpt_pangu",),
    tables=LazyMapping[Any]("lm_pangualpha.weights:TABLES"),
    tokenizer=_tokenizer,
    preprocessors=LazyMapping[Any]("lm_pangualpha.data:PREPROCESSORS"),
    configs=Path(__file__).parent / "configs",
)
