"""Llama: what `lm_core` needs to train it, load it and talk to it. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.spec import LazyMapping, ModelSpec
from lm_llama.config import PRESETS, LlamaConfig

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_llama.model import Llama
    from lm_llama.tokenizer import LlamaTokenizer

__version__ = "0.1.0"


def _build(config: LlamaConfig, context: ParallelContext) -> Llama:
    from lm_llama.model import Llama

    return Llama(config, context)


def _tokenizer(directory: Path) -> LlamaTokenizer:
    from lm_llama.tokenizer import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(directory)


def _hf_tokenizer(directory: Path) -> dict[str, str]:
    from lm_core.tokenizer.fast import files_beside
    from lm_llama.tokenizer import LlamaTokenizer

    return files_beside(directory, LlamaTokenizer)


SPEC = ModelSpec(
    name="llama",
    config_class=LlamaConfig,
    presets=PRESETS,
    build=_build,
    hf_types=("llama",),
    tables=LazyMapping[Any]("lm_llama.weights:TABLES"),
    tokenizer=_tokenizer,
    hf_tokenizer=_hf_tokenizer,
    chat=True,
    preprocessors=LazyMapping[Any]("lm_llama.data:PREPROCESSORS"),
    configs=Path(__file__).parent / "configs",
)
