"""Configurations, models, tokenizers by name or directory; random weights never unasked."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core import spec as registry
from lm_core.checkpoint import hub, io
from lm_core.checkpoint.source import Recut, Source
from lm_core.config.model import ModelConfig
from lm_core.errors import CheckpointError, TokenizerError
from lm_core.log import get_logger, notice_once
from lm_core.parallel.context import place_by
from lm_core.peft import layout, targets

if TYPE_CHECKING:
    from lm_core.checkpoint.layout.tensors import Tensors
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.tokenizer.base import Tokenizer

HEAD_OF_CLASSES = ("score.weight",)
HEAD_OF_TOKENS = ("head.weight",)
"""As the heads are named in all packages."""


class AutoConfig:
    """Model configurations."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **changes: Any) -> ModelConfig:
        """The configuration of a preset, a model directory, a run file (YAML) or a hub id.

        Where there are weights, `checkpoint_name_or_path` says so: `AutoModel.from_config` loads
        them.

        Args:
            name_or_path: which one.
            **changes: fields to change.

        Raises:
            CheckpointError: nothing has that name.
            ConfigError: it or a change is wrong.
        """
        if Path(name_or_path).suffix in (".yaml", ".yml"):
            config = registry.read_run(name_or_path).model.config
        else:
            source = hub.resolve(name_or_path)
            config = source.config
            if source.has_weights:
                config = config.copy(checkpoint_name_or_path=str(name_or_path))
        return config.copy(changes)

    @staticmethod
    def show_support_list() -> list[str]:
        """The names of all presets."""
        return [name for spec in registry.installed().values() for name in spec.presets]


class AutoModel:
    """Models with their weights."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        context: ParallelContext | None = None,
        recut: Recut | None = None,
        new_head: bool = False,
        seed: int = 0,
        **changes: Any,
    ) -> Any:
        """The model with the weights of a directory, a weights file, a run's output or a hub id.

        A preset name is a size without weights: they are downloaded if huggingface_hub is
            installed.

        Args:
            name_or_path: where the weights are.
            adapter: a folder or file with an adapter to put on it. One that lies beside the weights
                is found by itself.
            context: the place of this process, None: that which `init_context` found. It gets its
                part of the weights, read tensor by tensor.
            recut: what to do with weights that lie in parts; None: parts of other degrees are
                refused.
            new_head: a classifier (`task="text_classification", num_labels=2`) may be made of the
                weights of a language model; its head is random then, which is said.
            seed: of such a head, and of a new adapter where the configuration has one and the
                weights have none.
            **changes: fields of the configuration to change (`seq_length=512`, `config=` replaces
                all).

        Returns:
            a `CausalLM`, or for text classification a `SequenceClassifier`.

        Raises:
            CheckpointError: no weights, damaged ones, or ones that do not fit: all names in one
                report.
            ConfigError: a wrong change.
        """
        given = changes.pop("config", None)
        source = hub.resolve(name_or_path, config=given)
        source = hub.weights(name_or_path, source)
        config = source.config.copy(changes)
        config.checkpoint_name_or_path = str(source.path)
        adapter = adapter or source.adapter  # which may bring the head that it was trained with
        absent = HEAD_OF_CLASSES if new_head or adapter else ()
        tensors = _part(name_or_path, source, config, absent, context, recut)
        model = empty_model(config, context=context, seed=seed)
        io.assign(model.named_parameters(), tensors)
        missing = set(HEAD_OF_CLASSES) & model.named_parameters().keys() - tensors.specs.keys()
        if config.pet_config is not None and not adapter and not _has_adapter(tensors):
            get_logger(__name__).info(
                "%s: holds no adapter; a new one is on it, which changes nothing until it is "
                "trained", source.path,
            )  # fmt: skip
        if missing and not adapter:
            get_logger(__name__).warning(
                "%s: %s is new and random (seed %d); train it before it is used",
                source.path, ", ".join(missing), seed,
            )  # fmt: skip
            model.initialize(seed, missing)
        return _with_adapter(model, adapter)

    @staticmethod
    def from_config(
        config: ModelConfig | str | Path,
        *,
        context: ParallelContext | None = None,
        seed: int = 0,
        **changes: Any,
    ) -> Any:
        """The model that a configuration describes.

        It has the weights that `checkpoint_name_or_path` names; where that is empty they are
        random, which is said once.

        Args:
            config: a configuration, or what `AutoConfig.from_pretrained` takes.
            context: the place of this process; None: that which `init_context` found, by the
                `parallel_config` of the configuration where it was given no degrees.
            seed: of random weights.
            **changes: fields of the configuration to change.

        Raises:
            CheckpointError: `checkpoint_name_or_path` names no weights, or ones that do not fit.
        """
        if not isinstance(config, ModelConfig):
            config = AutoConfig.from_pretrained(config)
        # A copy: what a caller does to the configuration later is no business of this model.
        config = config.copy(changes)
        spec = hub.family_of(config)
        context = context or place_by(config.parallel_config)
        if config.checkpoint_name_or_path:
            model = empty_model(config, context=context, seed=seed)
            load_weights(model, config.checkpoint_name_or_path)
            return model
        notice_once(
            "random weights",
            f"{spec.name}: new model with random weights (seed {seed}); "
            f"AutoModel.from_pretrained(DIR) loads trained ones",
        )
        model = empty_model(config, context=context, seed=seed)
        model.initialize(seed)
        return model


class AutoTokenizer:
    """Tokenizers."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path, *, family: str | ModelConfig | None = None
    ) -> Tokenizer:
        """The tokenizer of a model directory, of a folder with its files alone, or of a hub id.

        Args:
            name_or_path: which one.
            family: whose it is, where a folder with a vocabulary does not say it: a package or
                preset ("llama"), or the configuration of the model.

        Raises:
            CheckpointError: nothing has that name, or it has no tokenizer files.
            ConfigError: no installed package is that family.
            TokenizerError: the files are damaged, of an unknown kind, or of several families.
        """
        spec, directory = hub.tokenizer_directory(name_or_path)
        if spec is None and family is not None:
            named = isinstance(family, str)
            spec = registry.find(family) if named else hub.family_if_any(family)  # type: ignore
        return _guessed(directory) if spec is None else spec.tokenizer(directory)


def _guessed(directory: Path) -> Tokenizer:
    """The tokenizer of a folder that does not say whose it is, if one family alone can read it.

    Of several, one whose vocabulary's file is there under the name that this family gives it.

    Raises:
        TokenizerError: none can, or several: they would give other ids for the same text.
    """
    found, problems = {}, []
    for spec in registry.installed().values():
        try:
            found[spec.name] = spec.tokenizer(directory)
        except TokenizerError as error:
            problems += error.problems
    named = {name: one for name, one in found.items() if (directory / one.file_name).is_file()}
    found = named or found
    if len(found) > 1:
        raise TokenizerError(
            f"{directory}: holds a vocabulary of {' or '.join(found)}; must say which; put the "
            f"model's tokenizer_config.json or config.json there, or call "
            f'AutoTokenizer.from_pretrained(DIR, family="{next(iter(found))}")'
        )
    if not found:
        raise TokenizerError(*problems or [f"{directory}: no installed package reads it"])
    return next(iter(found.values()))


def load_weights(
    model: Network,
    name_or_path: str | Path,
    absent: Collection[str] = (),
    recut: Recut | None = None,
) -> Source:
    """Puts the weights that `name_or_path` names into a model.

    Args:
        model: built for the configuration that the weights must fit.
        name_or_path: as for `AutoModel.from_pretrained`.
        absent: parameters that may be missing there and keep their values (a new head).
        recut: as for `AutoModel.from_pretrained`.

    Returns:
        where they came from.

    Raises:
        CheckpointError: no weights, damaged ones, or ones that do not fit: all names in one report.
    """
    spec = hub.family_of(model.config)
    source = hub.resolve(name_or_path, spec=spec, config=model.config)
    source = hub.weights(name_or_path, source)
    tensors = _part(name_or_path, source, model.config, absent, model.context, recut)
    io.assign(model.named_parameters(), tensors)
    _with_adapter(model, source.adapter)
    return source


def save_pretrained(
    model: Network,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation_config: Any = None,
    max_shard_size: str | int | None = None,
) -> None:
    """Writes a directory that `from_pretrained` reads: complete, or as it was before.

    Args:
        model: what to save.
        directory: an older checkpoint in it is replaced; files of others stay.
        tokenizer: to be saved with it.
        generation_config: a mapping or a `GenerationConfig`.
        max_shard_size: bytes or "5GB" of a weights file; one file if None.

    Raises:
        CheckpointError: the directory cannot be written or must not be replaced, or this process
            holds a part of the model.
    """
    from lm_core.checkpoint.tensorfile import parse_size

    if model.context.cuts_weights:
        raise CheckpointError(
            f"{directory}: this process holds a part of the model; a model directory must have all "
            f"of it; save from a single process, or split the directory with `transform`"
        )
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    files: dict[str, str | Path] = {}
    if generation_config is not None:
        files["generation_config.json"] = _generation_json(generation_config)
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
            files |= {path.name: path for path in Path(scratch).iterdir()}
        io.save_native(
            directory,
            model.spec_name,
            model.config,
            io.Parameters(model.named_parameters()),
            max_shard_size=limit,
            files=files,
        )


def empty_model(
    config: ModelConfig, *, context: ParallelContext | None = None, seed: int = 0
) -> Network:
    """The network with zeros for weights, and a new adapter if `pet_config` says so."""
    from lm_core.nn.classifier import with_head
    from lm_core.nn.init import no_initial_values
    from lm_core.parallel.context import ParallelContext

    with no_initial_values():
        model = with_head(hub.family_of(config).build(config, context or ParallelContext.current()))
    if config.pet_config is not None:
        from lm_core.peft.lora import attach

        attach(model, config.pet_config, seed)
    return model


def _with_adapter(model: Network, adapter: str | Path | None) -> Network:
    if not adapter:
        return model
    from lm_core.peft.lora import get_pet_model

    return get_pet_model(model, adapter)


def _has_adapter(tensors: Tensors) -> bool:
    return any(map(layout.is_adapter_name, tensors.specs))


def _part(
    name_or_path: str | Path,
    source: Source,
    config: ModelConfig,
    absent: Collection[str],
    context: ParallelContext | None,
    recut: Recut | None,
) -> Tensors:
    """This rank's part of the weights: all of them, where it is alone and they lie in one piece."""
    from lm_core.checkpoint import rankfolders, ranks, saved
    from lm_core.parallel.context import ParallelContext
    from lm_core.parallel.partition import Partition

    recut = recut or Recut()
    context = context or ParallelContext.current()
    in_parts = Path(name_or_path).exists() and any(
        step.layout.cuts_weights for step in rankfolders.steps(name_or_path, saved.CONFIG)
    )
    if context.world_size == 1 and not in_parts and not recut.src_strategy:
        return _tensors(source.tensors, source.path, config, absent)
    spec = source.spec
    partition = Partition(config, context.degrees, targets.shapes(spec, config))

    def read(
        config: ModelConfig, absent: Collection[str] = (), spare: Collection[str] = ()
    ) -> Tensors:
        return ranks.open_for(
            name_or_path, config, spec, partition, context.rank, recut.auto_trans, recut.scratch,
            recut.src_strategy or None, absent=absent, spare=spare,
        )  # fmt: skip

    return _tensors(read, source.path, config, absent, context.is_last_stage)


def _tensors(
    read: Callable[..., Tensors],
    where: Path | None,
    config: ModelConfig,
    absent: Collection[str],
    has_head: bool = True,
) -> Tensors:
    """The weights that `read` gives; a classifier's may be a language model's but for the head.

    Raises:
        CheckpointError: as `read`; a classifier's head is missing and must not be.
    """
    if not config.is_classifier:
        return read(config, absent=absent)
    tensors = read(config, absent=[*absent, *HEAD_OF_CLASSES], spare=HEAD_OF_TOKENS)
    if not has_head:
        return tensors
    lacking = [name for name in HEAD_OF_CLASSES if name not in {*tensors.specs, *absent}]
    if lacking:
        raise CheckpointError(
            f"{where}: lacks {', '.join(lacking)}, it is a language model; must be a "
            f"classifier here; finetune makes one of it (AutoModel.from_pretrained(..., "
            f"new_head=True) gives it a random head)"
        )
    return tensors


def _generation_json(settings: Any) -> str:
    values = settings if isinstance(settings, Mapping) else dataclasses.asdict(settings)
    return json.dumps({k: v for k, v in values.items() if v is not None}, indent=2) + "\n"
