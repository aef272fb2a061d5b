"""The names that programs import from the toolkit, each loaded when it is first used (PEP 562)."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_core.auto import AutoConfig, AutoModel, AutoTokenizer
    from lm_core.checkpoint.saved import get_last_checkpoint
    from lm_core.config.flags import str2bool
    from lm_core.config.load import build_parallel_config
    from lm_core.config.model import LoraConfig
    from lm_core.config.parallel import ParallelConfig
    from lm_core.config.parallel import ParallelConfig as TransformerOpParallelConfig
    from lm_core.config.schema import ContextConfig, ParallelContextConfig
    from lm_core.generation.generate import GenerationConfig
    from lm_core.job import build_context, transform_and_load_checkpoint
    from lm_core.parallel.context import ParallelContext, get_real_rank, init_context
    from lm_core.peft.lora import get_pet_model, merge_adapter
    from lm_core.pipeline import TextGenerationPipeline, pipeline
    from lm_core.spec import read_run as LmConfig
    from lm_core.trainer import Trainer

__version__ = "0.1.0"

# MindSpore reads this once, when it is imported; without it every run is full of its warnings.
os.environ.setdefault("GLOG_v", "3")

_HOMES = {
    "AutoConfig": "lm_core.auto",
    "AutoModel": "lm_core.auto",
    "AutoTokenizer": "lm_core.auto",
    "ContextConfig": "lm_core.config.schema",
    "GenerationConfig": "lm_core.generation.generate",
    "LmConfig": "lm_core.spec:read_run",
    "LoraConfig": "lm_core.config.model",
    "ParallelConfig": "lm_core.config.parallel",
    "ParallelContext": "lm_core.parallel.context",
    "ParallelContextConfig": "lm_core.config.schema",
    "TextGenerationPipeline": "lm_core.pipeline",
    "Trainer": "lm_core.trainer",
    "TransformerOpParallelConfig": "lm_core.config.parallel:ParallelConfig",
    "build_context": "lm_core.job",
    "build_parallel_config": "lm_core.config.load",
    "get_last_checkpoint": "lm_core.checkpoint.saved",
    "get_pet_model": "lm_core.peft.lora",
    "get_real_rank": "lm_core.parallel.context",
    "init_context": "lm_core.parallel.context",
    "merge_adapter": "lm_core.peft.lora",
    "pipeline": "lm_core.pipeline",
    "str2bool": "lm_core.config.flags",
    "transform_and_load_checkpoint": "lm_core.job",
}

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoTokenizer",
    "ContextConfig",
    "GenerationConfig",
    "LmConfig",
    "LoraConfig",
    "ParallelConfig",
    "ParallelContext",
    "ParallelContextConfig",
    "TextGenerationPipeline",
    "Trainer",
    "TransformerOpParallelConfig",
    "build_context",
    "build_parallel_config",
    "get_last_checkpoint",
    "get_pet_model",
    "get_real_rank",
    "init_context",
    "merge_adapter",
    "pipeline",
    "str2bool",
    "transform_and_load_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lm_core' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `lm_core.pipeline` the function.

    The import system sets a package's attribute to each submodule that it loads, so the module of
    the same name would hide the function from then on. `from lm_core.pipeline import ...` is not
    affected.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pipeline" and isinstance(value, ModuleType):
            value = value.pipeline
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
