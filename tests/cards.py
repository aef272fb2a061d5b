"""The run files that a model card names: each value is accepted and kept, or differs for a reason.

A YAML file holds a card. `common` is what its files share, or the name of a file beside it that is
kept as it was written; `files` says what each changes in that, by dotted keys; `parts`, where it is
there, holds anchors for what several of them change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_core.config.load import dump_run, load_run
from lm_core.spec import read_run

if TYPE_CHECKING:
    from lm_core.config.schema import Run
    from lm_core.spec import ModelSpec

RENAMED = {
    "MFTrainOneStepCell": "train_one_step",
    "DynamicLossScaleUpdateCell": "dynamic",
    "CausalLanguageModelingTrainer": "text_generation",
    "TextClassificationTrainer": "text_classification",
    "CausalLanguageModelDataset": "causal_lm",
    "TextClassificationDataset": "text_classification",
    "KeyWordGenDataset": "keyword_generation",
    "FP32StateAdamWeightDecay": "adamw",
    "FusedAdamWeightDecay": "adamw",
    "CosineWithWarmUpLR": "cosine",
    "MFLossMonitor": "loss_monitor",
    "CheckpointMointor": "checkpoint",
    "ObsMonitor": "obs",
    "PerplexityMetric": "perplexity",
    "Accuracy": "accuracy",
    "ADGENMetric": "adgen",
    "PromptAccMetric": "prompt_accuracy",
    "EmF1Metric": "em_f1",
}
"""What the cards call after their classes, and what a loaded run calls it."""
ALIAS = re.compile(r"_task\.dataset_config\b")  # The section itself, which a run says once.
METRIC = re.compile(r"^metric\.0\b")  # The cards name one, a run has a list.


@dataclass(frozen=True)
class Differs:
    """A value of a card that a loaded run does not show as it is."""

    key: str
    theirs: Any
    ours: Any
    why: str


@dataclass(frozen=True)
class Card:
    """`common` with its sections; `files`: name -> dotted key -> value."""

    common: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Card:
        values = _read(path)
        common = values["common"]
        return cls(
            _read(path.parent / common) if isinstance(common, str) else common, values["files"]
        )

    def run(self, name: str) -> dict[str, Any]:
        """The values of one run file."""
        values = copy.deepcopy(dict(self.common))
        for key, value in self.files[name].items():
            *sections, last = key.split(".")
            place: Any = values
            for section in sections:
                place = place[int(section)] if section.isdigit() else place.setdefault(section, {})
            place[last] = copy.deepcopy(value)
        return values


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def written(folder: Path, values: Mapping[str, Any]) -> Path:
    """A run file of these values."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path


def shown(run: Run) -> dict[str, Any]:
    """Dotted key -> value, as a loaded run says it."""
    values = flat(yaml.safe_load(dump_run(run)))
    return {METRIC.sub("metric", key): value for key, value in values.items()} | values


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value; members of a list of sections are counted."""
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        pairs = enumerate(values)
    else:
        return {path: values}
    return {
        k: v for key, value in pairs for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()
    }


def kept(
    values: Mapping[str, Any], spec: ModelSpec, folder: Path, differences: tuple[Differs, ...] = ()
) -> Run:
    """The run that a file of these values is, after looking at each of them in it.

    Raises:
        AssertionError: with all values that are not kept and not among the `differences`.
    """
    path = written(folder, values)
    run = load_run(path, family=spec)
    found = shown(run)
    lost = []
    for key, theirs in flat(dict(values)).items():
        wanted, ours = _wanted(key, theirs, differences), found.get(ALIAS.sub("", key), "nothing")
        if ours != wanted:
            lost.append(f"{key}: is {ours!r}; must be {wanted!r}")
    assert not lost, "\n".join(lost)
    assert read_run(path).model.config == run.model.config
    return run


def _wanted(key: str, theirs: Any, differences: tuple[Differs, ...]) -> Any:
    for differs in differences:
        if (differs.key, differs.theirs) == (key, theirs):
            return differs.ours
    return RENAMED.get(theirs, theirs) if isinstance(theirs, str) else theirs


def places(fragment: str, base: str) -> dict[str, str]:
    """Where users put what a card has them write of a model, -> the run file that then is."""
    indented = "".join(f"    {line}\n" for line in fragment.splitlines())
    return {
        "pasted behind": f"base: {base}\n{fragment}",
        "in its section": f"base: {base}\nmodel:\n  model_config:\n{indented}",
    }
