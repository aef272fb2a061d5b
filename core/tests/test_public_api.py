"""`from lm_core import ...`: every name, in every order, and nothing loaded before it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import lm_core


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = """
import sys
before = set(sys.modules)
import lm_core
import json, os
print(json.dumps([name.partition(".")[0] for name in set(sys.modules) - before]))
print(os.environ["GLOG_v"])
"""
    loaded, level = run(code).splitlines()
    assert not {"mindspore", "numpy", "pydantic", "yaml", "tqdm"} & set(json.loads(loaded))
    assert level


def test_the_users_log_level_is_kept():
    assert (
        run(
            "import os; os.environ['GLOG_v'] = '1'; import lm_core; print(os.environ['GLOG_v'])"
        ).strip()
        == "1"
    )


@pytest.mark.parametrize("name", lm_core.__all__)
def test_every_name_has_a_home(name):
    assert name in dir(lm_core)
    module, _, attribute = lm_core._HOMES[name].partition(":")
    found = find_spec(module)
    assert found is not None and found.origin, module
    body = ast.parse(Path(found.origin).read_text(encoding="utf-8")).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert (attribute or name) in names, f"{module} has no {attribute or name}"


NAMED_BY_CARDS = {
    "AutoConfig",
    "AutoModel",
    "AutoTokenizer",
    "ContextConfig",
    "LoraConfig",
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
    "pipeline",
    "str2bool",
    "transform_and_load_checkpoint",
    "LmConfig",
}


def test_names_that_programs_of_others_import():
    assert {*lm_core.__all__} >= NAMED_BY_CARDS
    assert {*lm_core.__all__} == {*lm_core._HOMES}


def test_what_decides_nothing_but_settings_loads_no_mindspore():
    code = """
import sys
from lm_core import ContextConfig, LmConfig, ParallelContextConfig, TransformerOpParallelConfig
from lm_core import build_parallel_config, get_last_checkpoint, get_real_rank, str2bool
ContextConfig(mode=0, device_target="Ascend", device_id=1)
ParallelContextConfig(parallel_mode="SEMI_AUTO_PARALLEL", gradients_mean=False, full_batch=True)
print(get_real_rank(), str2bool("False"), "mindspore" in sys.modules)
"""
    assert run(code).split() == ["0", "False", "False"]


def test_a_name_that_is_none():
    with pytest.raises(AttributeError, match="no attribute 'AutoModl'"):
        lm_core.AutoModl  # noqa: B018
    with pytest.raises(ImportError):
        from lm_core import AutoModl  # noqa: F401


ORDERS = [
    "from lm_core import pipeline as f",
    "import lm_core.pipeline; from lm_core import pipeline as f",
    "from lm_core.pipeline import TextGenerationPipeline; from lm_core import pipeline as f",
    "from lm_core.pipeline import pipeline as f",
    "from lm_core import pipeline; from lm_core.pipeline import pipeline as f",
    "import lm_core.pipeline, lm_core; f = lm_core.pipeline",
    "import lm_core; lm_core.pipeline; import lm_core.pipeline; f = lm_core.pipeline",
    "from lm_core import *; f = pipeline",
]


@pytest.mark.parametrize("order", ORDERS)
def test_pipeline_is_the_function_in_every_order(order):
    """With a stand-in for the module, so that the order alone is tested."""
    code = f"""
import importlib.abc, importlib.machinery, sys
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "lm_core.pipeline":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec): return None
    def exec_module(self, module):
        exec("def pipeline(): return 'called'", module.__dict__)
        module.TextGenerationPipeline = object
sys.meta_path.insert(0, Finder())
import lm_core
lm_core.__all__ = ["pipeline"]
{order}
import types, importlib
assert isinstance(f, types.FunctionType), f
assert f is importlib.import_module("lm_core.pipeline").pipeline
print(f())
"""
    assert run(code).strip() == "called"
