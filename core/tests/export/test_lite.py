"""Calls of MindSpore Lite, against a stand-in with the signatures that its documentation gives.

The stand-in computes the graphs with MindSpore, which shows that inputs and order are right. It
does not show that Lite itself takes these graphs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lm_core.errors import ConfigError, GenerationError
from lm_core.export import lite
from lm_core.export.description import Description
from lm_core.export.exported import ExportedModel
from lm_core.spec import find
from lm_core.testing import tiny
from lm_core.testing.network import exported


class Group:
    """Models in it share parameters once all are built."""

    def __init__(self, flags):
        assert flags == "share weight"

    def add_model(self, models):
        assert isinstance(models, list)
        for model in models:
            model.group = models


class Model:
    def __init__(self):
        self.group, self.cell = [], None

    def build_from_file(self, model_path, model_type, context, config_path):
        import mindspore as ms

        assert model_type == "mindir" and context.target == ["Ascend"]
        assert (context.ascend.provider, context.ascend.device_id) == ("ge", 3)
        assert "[ascend_context]" in Path(config_path).read_text()
        self.cell = ms.nn.GraphCell(ms.load(model_path))
        first = self.group[0].cell
        own = {p.name: p for p in first.get_parameters()}
        for parameter in self.cell.get_parameters():
            parameter.set_data(own[parameter.name])

    def predict(self, inputs):
        import mindspore as ms

        found = self.cell(*(ms.Tensor(one.values) for one in inputs)).asnumpy()
        return [SimpleNamespace(get_data_to_numpy=lambda: found)]


class Tensor:
    def __init__(self, values):
        assert values.dtype == np.int32 and values.flags.c_contiguous
        self.values = values


@pytest.fixture
def library(monkeypatch):
    fake = ModuleType("mindspore_lite")
    fake.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    fake.Context = lambda: SimpleNamespace(ascend=SimpleNamespace())
    fake.ModelGroupFlag = SimpleNamespace(SHARE_WEIGHT="share weight")
    fake.ModelType = SimpleNamespace(MINDIR="mindir")
    fake.ModelGroup, fake.Model, fake.Tensor = Group, Model, Tensor
    monkeypatch.setitem(sys.modules, "mindspore_lite", fake)


@pytest.fixture(scope="module")
def model():
    return tiny.model(find("gpt2"), num_layers=1)


def test_lite_is_called_as_documented(model, library, tmp_path):
    folder = exported(model, tmp_path / "export", 2, 32)
    found = ExportedModel(folder, lite=folder / "lite.ini", device_id=3)
    settings = {"max_new_tokens": 12, "eos_token_id": []}
    for prompts in ([[5, 6, 7], [8]], [[9, 1]]):
        expected = model.generate(prompts, **settings)
        for row, own in zip(found.generate(prompts, **settings), expected, strict=True):
            np.testing.assert_array_equal(row, own)
    with pytest.raises(GenerationError, match="num_beams: .* must be 1 with --lite"):
        found.generate([[5]], num_beams=2, **settings)
    with pytest.raises(ConfigError, match="no such file"):
        ExportedModel(folder, lite=tmp_path / "other.ini")


def test_open_sizes_and_a_missing_library_are_refused(library, monkeypatch):
    fixed = Description(model="gpt2", batch_size=1, seq_length=8)
    lite.require(fixed)
    with pytest.raises(ConfigError, match="must be fixed for MindSpore Lite"):
        lite.require(fixed.model_copy(update={"dynamic": True}))
    monkeypatch.delitem(sys.modules, "mindspore_lite")
    with pytest.raises(ConfigError, match="is not installed"):
        lite.require(fixed)


@pytest.mark.parametrize(("ranks", "part"), [(1, "."), (2, "rank_$i")])
def test_the_script_and_the_settings(ranks, part, tmp_path):
    lite.write(
        tmp_path, Description(model="gpt2", batch_size=1, seq_length=8, model_parallel=ranks)
    )
    settings = (tmp_path / "lite.ini").read_text().splitlines()
    assert settings[:3] == ["[ascend_context]", "plugin_custom_ops=All", "provider=ge"]
    assert ("rank_table_file=RANK_TABLE_FILE" in settings) == (ranks > 1)
    assert settings[-3:] == [
        "[ge_session_options]", "ge.exec.formatMode=1",
        "ge.exec.precision_mode=must_keep_origin_dtype",
    ]  # fmt: skip
    script = tmp_path / "run_lite.sh"
    if ranks > 1:  # it lies in the folder of a rank
        (tmp_path / "rank_0").mkdir()
        script = script.rename(tmp_path / "rank_0" / "run_lite.sh")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$RANK_ID" "$@"\n')
    python.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run([str(script), "a b"], check=True, env={"PATH": path, "START_DEVICE_ID": "4"})
    for rank in range(ranks):
        own = part.replace("$i", str(rank))
        assert (tmp_path / f"rank_{rank}.log").read_text() == (
            f"{rank} -m lm_gpt2.predict --mindir {own} --lite {own}/lite.ini "
            f"--device_id {4 + rank} --seed 0 --predict_data a b\n"
        )
