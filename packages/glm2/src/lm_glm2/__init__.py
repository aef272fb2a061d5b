"""ChatGLM2: what `lm_core` needs to train it, load it and talk to it. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.spec import LazyMapping, ModelSpec
from lm_glm2.config import PRESETS, ChatGlm2Config

if TYPE_CHECKING:
    from lm_core.parallel.context import ParallelContext
    from lm_glm2.model import ChatGlm2
    from lm_glm2.tokenizer import ChatGlm2Tokenizer

__version__ = "0.1.0"


def _build(config: ChatGlm2Config, context: ParallelContext) -> ChatGlm2:
    from lm_glm2.model import ChatGlm2

    return ChatGlm2(config, context)


def _tokenizer(directory: Path) -> ChatGlm2Tokenizer:
    from lm_glm2.tokenizer import ChatGlm2Tokenizer

    return ChatGlm2Tokenizer.from_pretrained(directory)


SPEC = ModelSpec(
    name="glm2",
    config_class=ChatGlm2Config,
    presets=PRESETS,
    build=_build,
    hf_types=("chatglm",),
    tables=LazyMapping[Any]("lm_glm2.weights:TABLES"),
    tokenizer=_tokenizer,
    # In published files these three are one matrix, so adapters of others have all.
    adapted=r".*\.attention\.[qkv]",
    chat=True,
    preprocessors=LazyMapping[Any]("lm_glm2.data:PREPROCESSORS"),
    configs=Path(__file__).parent / "configs",
)
