"""The run that a checkpoint says, where no run file is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.config import yamlfile
from lm_core.config.layers import read_layers
from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.layers import Layers
    from lm_core.config.load import ModelFamily

RUN = "run.yaml"
"""The settings of the run that made a checkpoint."""


def layers(spec: ModelFamily, checkpoint: str, kept: Sequence[str] = ()) -> Layers | None:
    """The run of a directory that says what model it holds; None where it does not.

    Args:
        spec: the model package.
        checkpoint: a directory, the output of a run, or a preset.
        kept: sections that are those of the run that made the checkpoint, if one of ours did.

    Raises:
        ConfigError: the directory is damaged, or holds another model.
    """
    path = _config_json(checkpoint)
    if path is None:
        fields = _without_config_json(spec, checkpoint)
        return None if fields is None else read_layers({"model": {"model_config": fields}})
    label = str(Path(checkpoint) / "config.json")
    found = _read(path)
    owner = found.pop("lm_model", None)
    found.pop("lm_layout", None)
    if owner not in (None, spec.name):
        raise ConfigError(
            f"{label}: lm_model: holds a model of lm-{owner}, not lm-{spec.name}; "
            f"use `lm VERB {owner}`"
        )
    if owner is None:
        types = getattr(spec, "hf_types", ())
        if found.get("model_type") not in types:
            raise ConfigError(
                f"{label}: model_type: is {found.get('model_type')!r}; "
                f"lm-{spec.name} loads {', '.join(types)}; use the package of that model"
            )
        found = spec.config_class.from_hf(found).explicit()  # type: ignore[attr-defined]
        found.pop("parallel_config", None)
    made = read_layers({"model": {"model_config": found}, **_sections(path.with_name(RUN), kept)})
    made.label = label
    made.origins = dict.fromkeys(made.origins, label)
    return made


def _sections(run: Path, names: Sequence[str]) -> dict[str, Any]:
    """Some sections of the run beside a checkpoint; none where there is no run."""
    if not (names and run.is_file()):
        return {}
    values = yamlfile.read(run).values
    return {name: values[name] for name in names if name in values}


def _without_config_json(spec: ModelFamily, checkpoint: str) -> dict[str, Any] | None:
    """`model_config` for a preset, or for a model as its authors publish it; None for others."""
    if checkpoint in spec.presets:
        return {"preset": checkpoint}
    from lm_core.checkpoint import hub

    path = Path(checkpoint).expanduser()
    if not path.is_dir() or hub.release_in(path) is None:
        return None
    fields = hub.resolve(path, spec=spec).config.explicit()  # type: ignore[arg-type]
    fields.pop("parallel_config", None)
    return fields


def _config_json(directory: str) -> Path | None:
    path = Path(directory) / "config.json"
    if path.is_file():
        return path
    # The output of a run: all of its checkpoints are of one model.
    inner = [p for depth in range(1, 5) for p in Path(directory).glob("*/" * depth + path.name)]
    inner = [p for p in inner if (p.parent / "manifest.json").is_file()]
    return max(inner, key=lambda found: found.stat().st_mtime) if inner else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); copy the file again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is not a JSON object; copy the file again")
    return found
