"""Looking at run files of a card finds what a run does not keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cards import Card, Differs, kept

from lm_gpt2 import SPEC

LOST = "model.model_config.hidden_act: is 'gelu_tanh'; must be 'gelu'"


def values(folder: Path, **model: object) -> dict:
    """A card of one file, which changes what another file says."""
    config = {"type": "GPT2Config", **model}
    common = {"model": {"model_config": config}, "callbacks": [{"type": "MFLossMonitor"}]}
    (folder / "first.yaml").write_text(yaml.safe_dump(common))
    file = {"callbacks.0.per_print_times": 7, "train_dataset.batch_size": 3}
    (folder / "card.yaml").write_text(
        yaml.safe_dump({"common": "first.yaml", "files": {"a": {}, "b": file}})
    )
    return Card.read(folder / "card.yaml").run("b")


def test_a_file_changes_what_all_share(tmp_path: Path):
    made = values(tmp_path, num_layers=3)
    assert made["callbacks"] == [{"type": "MFLossMonitor", "per_print_times": 7}]
    run = kept(made, SPEC, tmp_path)
    assert (run.loss_monitor.per_print_times, run.model.config.num_layers) == (7, 3)
    assert Card.read(tmp_path / "card.yaml").run("a")["callbacks"] == [{"type": "MFLossMonitor"}]


def test_a_value_that_is_not_kept_needs_a_reason(tmp_path: Path):
    made = values(tmp_path, hidden_act="gelu", num_layers=3)
    differs = Differs("model.model_config.hidden_act", "gelu", "gelu_tanh", "there are two")
    with pytest.raises(AssertionError) as caught:
        kept(made, SPEC, tmp_path)
    assert str(caught.value) == LOST
    kept(made, SPEC, tmp_path, (differs,))
    with pytest.raises(AssertionError, match="must be 'gelu_tanh'"):
        kept(
            values(tmp_path, hidden_act="relu"),
            SPEC,
            tmp_path,
            (Differs("model.model_config.hidden_act", "relu", "gelu_tanh", "wrong"),),
        )
