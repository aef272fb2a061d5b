"""What a name means: a directory, a weights file, a run's output, a preset, or a hub id."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core import spec as registry
from lm_core.checkpoint import atomic, io, rankfolders, released, saved, tensorfile
from lm_core.checkpoint.layout.tensors import Tensors
from lm_core.checkpoint.source import Source, read_json, table_of
from lm_core.config.model import ModelConfig
from lm_core.errors import CheckpointError, ConfigError
from lm_core.log import get_logger, notice_once
from lm_core.peft import files

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec

_SHOWN = 8
"""Presets in a message; others are a few dots."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
_GENERATION_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "top_k",
    "top_p",
    "temperature",
    "repetition_penalty",
    "num_beams",
    "max_length",
    "max_new_tokens",
)


def resolve(
    name: str | Path, *, spec: ModelSpec | None = None, config: ModelConfig | None = None
) -> Source:
    """What `name` means. Nothing but configuration files is read; a hub id is downloaded.

    Args:
        name: a directory (Hugging Face, native, MindFormers, or the output of a run), a weights
            file, a preset, or a hub id.
        spec: the family that it must be of.
        config: the architecture, for weights that do not say it (and instead of what they say).

    Raises:
        CheckpointError: nothing has that name, or it is of another family.
    """
    path = Path(name).expanduser()
    atomic.recover(path)
    if path.is_dir():
        source = _directory(path, spec, config)
    elif path.is_file():
        source = _file(path, spec, config)
    else:
        source = _name(str(name), spec, config)
    if spec is not None and source.spec is not spec:
        raise CheckpointError(
            f"{name}: is a {source.spec.name} model; a {spec.name} model is needed here; "
            f"use lm_{source.spec.name} or give other weights"
        )
    return source


def weights(name: str | Path, source: Source) -> Source:
    """`source` if it has weights; those published for a preset if they can be downloaded.

    Raises:
        CheckpointError: a preset, and nothing to download. Random weights are never used unasked.
    """
    if source.path is not None:
        return source
    published = _published(source.spec, str(name))
    if published and find_spec("huggingface_hub"):
        notice_once(
            f"download {name}", f"{name}: downloading {published} from the Hugging Face hub"
        )
        found = _directory(download(published), source.spec, None)
        return replace(found, config=source.config)
    online = f"pip install 'lm-core[hub]' to download {published}; " if published else ""
    raise CheckpointError(
        f"{name}: is a preset, a size without weights; give a directory or file that has some; "
        f"{online}AutoModel.from_config(AutoConfig.from_pretrained({str(name)!r})) "
        f"is a model with random weights"
    )


def tokenizer_directory(name: str | Path) -> tuple[ModelSpec | None, Path]:
    """The folder of a model's tokenizer, and the family if the folder says it.

    Raises:
        CheckpointError: nothing has that name, or a preset whose files cannot be downloaded.
    """
    path = Path(name).expanduser()
    path = path.parent if path.is_file() else path
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", *io.TOKENIZER_FILES)):
            path = saved.newest(path, saved.CONFIG) or path
        return _tokenizer_family(path), path
    source = _name(str(name), None, None)
    if source.path is not None:
        return source.spec, source.path
    published = _published(source.spec, str(name))
    if published and find_spec("huggingface_hub"):
        return source.spec, download(published, [p for p in _WANTED if p != "*.safetensors"])
    online = f", or pip install 'lm-core[hub]' to download that of {published}" if published else ""
    raise CheckpointError(
        f"{name}: is a preset and has no tokenizer files; give a directory that has them{online}"
    )


def download(repository: str, patterns: list[str] | None = None) -> Path:
    """The local copy of a hub repository: weights, configuration and tokenizer, no other files.

    Raises:
        CheckpointError: huggingface_hub is not installed, or the download failed.
    """
    try:
        from huggingface_hub import snapshot_download  # type: ignore[import-not-found]
    except ImportError as error:
        raise CheckpointError(
            f"{repository}: a hub id needs huggingface_hub; "
            f"pip install 'lm-core[hub]', or give a directory"
        ) from error
    options: dict[str, Any] = {"repo_id": repository, "ignore_patterns": ["*/*"]}
    try:
        path = Path(snapshot_download(**options, allow_patterns=patterns or _WANTED))
        if patterns is None and not any(path.glob("*.safetensors")) and find_spec("torch"):
            # Old repositories have PyTorch files only.
            path = Path(snapshot_download(**options, allow_patterns=[*_WANTED, "pytorch_model*"]))
    except Exception as error:  # The client raises errors of its own and of its network library.
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{repository}: cannot be downloaded ({first}); "
            f"check the name and the network, or give a directory"
        ) from error
    return path


def generation_defaults(directory: Path) -> dict[str, Any]:
    """The settings of generation_config.json that a model configuration has too."""
    path = directory / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    found = {key: values[key] for key in _GENERATION_KEYS if values.get(key) is not None}
    # Some publish temperature 0 beside do_sample: false; it means that there is none.
    return {key: value for key, value in found.items() if key != "temperature" or value}


def _directory(path: Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    if files.has_adapter(path):
        if not io.has_weights(path) and release_in(path) is None:
            return replace(_base_of(path, spec, config), adapter=path)
        return replace(_weights_of(path, spec, config), adapter=path)
    return _weights_of(path, spec, config)


def _base_of(path: Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    """The weights that an adapter alone in its folder was trained on."""
    base = files.base_of(path)
    if config is None and (path / "config.json").is_file():
        config = described(path, spec, None).config.copy(pet_config=None)
    try:
        return resolve(base, spec=spec, config=config)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: is an adapter without its base, and that ({base or 'of no name'}) is not "
            f"found; put it back, or name the base where weights are asked for and this folder as "
            f"the adapter (--load_adapter)"
        ) from error


def _weights_of(path: Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    if (path / "config.json").is_file():
        return described(path, spec, config)
    if found := release_in(path):
        return _released(path, found, config)
    newest = saved.newest(path, saved.CONFIG)
    if newest is not None:
        notice_once(f"newest {newest}", f"{path}: using {newest}")
        return _directory(newest, spec, config)
    if not io.has_weights(path):
        if ranks := rankfolders.folders(path):
            return _of_ranks(path, ranks, spec, config)
        raise CheckpointError(
            f"{path}: holds no checkpoint; config.json and weights, or the output of a run, "
            f"must be there; give another directory"
        )
    family, own = _given(path, spec, config)
    return Source("directory", path, family, own, layout_of(family, own, io.open_directory(path)))


def _of_ranks(
    path: Path, ranks: list[Path], spec: ModelSpec | None, config: ModelConfig | None
) -> Source:
    """What MindFormers puts into a folder for each rank; a single one holds the whole model."""
    if len(ranks) == 1:
        return _weights_of(ranks[0], spec, config)
    family, own = _given(path, spec, config)
    return Source(
        "directory", path, family, own, layout_of(family, own, io.open_directory(ranks[0]))
    )


def described(path: Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    """A directory that says what it is, by config.json."""
    where = path / "config.json"
    values = read_json(where)
    ours = values.pop("lm_model", None)
    notes = values.pop("lm_layout", {"name": "native"}) if ours else {"name": "hf"}
    try:
        family = registry.find(str(ours or values.get("model_type") or (spec.name if spec else "")))
        _require_class(config, family)
        own = family.config_class.parse(values) if ours else family.config_class.from_hf(values)
    except ConfigError as error:
        raise CheckpointError(*(f"{where}: {problem}" for problem in error.problems)) from error
    if config is not None:
        _tell_differences(config, own, where)
        config = config.named_like(own)
    elif not ours:
        own = own.copy(generation_defaults(path))
    layout = notes.pop("name")
    return Source("directory", path, family, config or own, layout, notes)


def release_in(path: Path) -> released.Found | None:
    """Which installed family's release a directory is; None if it is none."""
    return released.find(path, registry.installed().values())


def _released(path: Path, found: released.Found, config: ModelConfig | None) -> Source:
    """A directory as the authors of a model publish it."""
    where = path / found.release.description
    tensors = released.open_files(path, found.release)
    try:
        _require_class(config, found.spec)
        own = found.release.read(read_json(where), tensors.specs)
    except ConfigError as error:
        raise CheckpointError(*(f"{where}: {problem}" for problem in error.problems)) from error
    if config is not None:
        _tell_differences(config, own, where)
    else:
        own = own.copy(generation_defaults(path))
    return Source("directory", path, found.spec, config or own, found.layout)


def _require_class(config: ModelConfig | None, family: ModelSpec) -> None:
    if config is not None and not isinstance(config, family.config_class):
        raise ConfigError(
            f"is a {family.name} model and the configuration given is a "
            f"{type(config).__name__}; give one of {family.name}, or other weights"
        )


def _tell_differences(given: ModelConfig, own: ModelConfig, where: Path) -> None:
    """Warns of settings that change what the weights compute and that no shape would show."""
    keys = set(type(own).__annotations__) - set(ModelConfig.model_fields) | {"num_heads"}
    keys -= own.seen_in_shapes
    for key in sorted(key for key in keys if key in type(own).model_fields):
        ours, theirs = getattr(given, key), getattr(own, key)
        if ours != theirs and not re.search(r"dropout|positions|position_embeddings|labels", key):
            get_logger(__name__).warning(
                "%s: %s is %r, but %r is used, as the configuration given says",
                where,
                key,
                theirs,
                ours,
            )


def _file(path: Path, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    found = release_in(path.parent)
    if found and path in released.files(path.parent, found.release):
        return _released(path.parent, found, config)  # One of its files is no model.
    if tensorfile.is_shard(path):
        return _weights_of(path.parent, spec, config)
    tensors = io.open_file(path)
    if config is None and (path.parent / "config.json").is_file():
        beside = described(path.parent, spec, config)
        family, own = beside.spec, beside.config
    else:
        family, own = _given(path, spec, config)
    return Source("file", path, family, own, layout_of(family, own, tensors))


def _given(
    path: Path, spec: ModelSpec | None, config: ModelConfig | None
) -> tuple[ModelSpec, ModelConfig]:
    """The family and configuration that the caller names, for weights that do not say theirs."""
    if config is None:
        raise CheckpointError(
            f"{path}: does not say which model it is; a config.json must lie beside the weights; "
            f"give the model with --config (or as a configuration)"
        )
    return spec or family_of(config), config


def family_of(config: ModelConfig) -> ModelSpec:
    """The installed family that a configuration object belongs to."""
    if (spec := family_if_any(config)) is not None:
        return spec
    raise ConfigError(f"model: no installed package has a {type(config).__name__}; install it")


def family_if_any(config: ModelConfig) -> ModelSpec | None:
    """The same, or None where it is of none."""
    for spec in registry.installed().values():
        if isinstance(config, spec.config_class):
            return spec
    return None


def layout_of(spec: ModelSpec, config: ModelConfig, tensors: Tensors) -> str:
    """The layout that knows most of the names."""
    names = list(tensors.specs)
    tables = {layout: table for layout, table in spec.tables.items() if table.slices is None}
    counts = {layout: table.recognised(names) for layout, table in tables.items()}
    counts["native"] = len(set(names) & set(table_of(spec, "native").shapes(config)))
    best = max(counts, key=lambda layout: counts[layout])
    if not counts[best]:
        raise CheckpointError(
            f"{tensors.where}: holds no name of a {spec.name} model (it begins with "
            f"{', '.join(names[:3]) or 'nothing'}); the layouts {', '.join(counts)} are known; "
            f"give other weights"
        )
    return best


def _name(name: str, spec: ModelSpec | None, config: ModelConfig | None) -> Source:
    for family in registry.installed().values():
        if name in family.presets:
            return Source("preset", None, family, config or family.presets[name].copy(), "native")
    looks_local = name.startswith((".", "/", "~")) or Path(name).suffix in io.SUFFIXES
    if HUB_ID.fullmatch(name) and not looks_local and not Path(name).parent.exists():
        return _directory(download(name), spec, config)
    families = [spec] if spec is not None else registry.installed().values()
    presets = [preset for family in families for preset in family.presets]
    near = difflib.get_close_matches(name, presets, n=1)
    more = ["..."] if len(presets) > _SHOWN else []
    some = ", ".join([*presets[:_SHOWN], *more])
    hint = f"did you mean the preset {near[0]}?" if near else f"presets: {some}"
    raise CheckpointError(
        f"{name}: no such file or directory, and no preset; "
        f"give a directory, a weights file, or a hub id (owner/name); {hint}"
    )


def _published(spec: ModelSpec, preset: str) -> str:
    return spec.tables["hf"].published.get(preset, "")


def _tokenizer_family(path: Path) -> ModelSpec | None:
    values: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "config.json"):
        if (path / name).is_file():
            values.update(read_json(path / name))
    if found := release_in(path):
        return found.spec
    word = str(values.get("tokenizer_class", "")).lower()
    for spec in registry.installed().values():
        if values.get("lm_model") == spec.name or values.get("model_type") in spec.hf_types:
            return spec
    for spec in registry.installed().values():
        if any(name.replace("_", "") in word for name in (spec.name, *spec.hf_types)):
            return spec
    return None
