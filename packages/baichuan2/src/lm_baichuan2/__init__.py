"""Baichuan2: what `lm_core` needs to train it, load it and talk to it. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_baichuan2.config import PRESETS, Baichuan2Config
from lm_core.spec import LazyMapping, ModelSpec

if TYPE_CHECKING:
    from lm_baichuan2.model import Baichuan2
    from lm_baichuan2.tokenizer import Baichuan2Tokenizer
    from lm_core.parallel.context import ParallelContext

__version__ = "0.1.0"


def _build(config: Baichuan2Config, context: ParallelContext) -> Baichuan2:
    from lm_baichuan2.model import Baichuan2

    return Baichuan2(config, context)


def _tokenizer(directory: Path) -> Baichuan2Tokenizer:
    from lm_baichuan2.tokenizer import Baichuan2Tokenizer

    return Baichuan2Tokenizer.from_pretrained(directory)


SPEC = ModelSpec(
    name="baichuan2",
    config_class=Baichuan2Config,
    presets=PRESETS,
    build=_build,
    hf_types=("baichuan",),
    tables=LazyMapping[Any]("lm_baichuan2.weights:TABLES"),
    tokenizer=_tokenizer,
    # In published files these three are one matrix, so adapters of others have all.
    adapted=r".*\.attention\.[qkv]",
    chat=True,
    preprocessors=LazyMapping[Any]("lm_baichuan2.data:PREPROCESSORS"),
    configs=Path(__file__).parent / "configs",
)
