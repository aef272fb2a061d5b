"""What a model package hands to the core, and how installed packages are found."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from lm_core.errors import ConfigError

if TYPE_CHECKING:
    from lm_core.config.layers import Layers
    from lm_core.config.model import ModelConfig
    from lm_core.config.schema import RunConfig

Value = TypeVar("Value")


class LazyMapping(Mapping[str, Value], Generic[Value]):
    """A mapping that another module holds, imported when it is first looked at."""

    def __init__(self, target: str) -> None:
        """`target` is "package.module:NAME"."""
        self._target = target
        self._loaded: Mapping[str, Value] | None = None

    def _mapping(self) -> Mapping[str, Value]:
        if self._loaded is None:
            module, _, name = self._target.partition(":")
            self._loaded = getattr(import_module(module), name)
        return self._loaded

    def __getitem__(self, key: str) -> Value:
        return self._mapping()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping())

    def __len__(self) -> int:
        return len(self._mapping())

    def __repr__(self) -> str:
        return f"LazyMapping({self._target!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model family. Everything heavy is behind a function: importing it costs nothing."""

    name: str
    """The entry point, the CLI word, and `lm_<name>`."""
    config_class: type[ModelConfig]
    """Validates `model.model_config` of a run and `config.json` of a checkpoint."""
    presets: Mapping[str, ModelConfig]
    """Sizes by the names users know ("gpt2", "gpt2_xl"), plus `<name>_tiny`."""
    build: Callable[..., Any]
    """`build(config, context) -> CausalLM`: the one place that imports the network."""
    hf_types: tuple[str, ...]
    """Values of `model_type` in a Hugging Face config.json that this package loads."""
    tables: Mapping[str, Any]
    """Foreign weight layouts by name ("hf", "mindformers"), each a `checkpoint.layout.Table`."""
    tokenizer: Callable[[Path], Any]
    """`tokenizer(directory) -> Tokenizer`."""
    hf_tokenizer: Callable[[Path], Mapping[str, str]] | None = None
    """`hf_tokenizer(directory)`: texts, by name, of the files without which transformers would read
    the tokenizer of a folder in another way; None: it reads those that are there as they are."""
    adapted: str = r".*\.attention\.[qv]"
    """Layers that get an adapter unless a run names others: queries and values, as in the paper of
    LoRA (section 4.2)."""
    chat: bool = False
    """Whether its tokenizer has a chat format (`apply_chat_template`)."""
    preprocessors: Mapping[str, Any] = field(default_factory=dict)
    """Raw data to records, by the word after `preprocess`."""
    configs: Path
    """Folder of run files (`*.yaml`)."""

    def run_names(self) -> list[str]:
        """The run files of the package, as `--config` names them."""
        return sorted(path.stem for path in self.configs.glob("*.yaml"))

    def class_names(self) -> list[str]:
        """What run files call configuration and network: `GPT2Config`, `GPT2LMHeadModel`."""
        types = get_args(self.config_class.model_fields["type"].annotation)
        own = [name for name in types if name not in self.config_class.types_of_others]
        return [*own, *self.config_class.architectures]


def names() -> list[str]:
    """The model packages of this environment, none of them imported."""
    return sorted({point.name for point in entry_points(group="lm.models")})


@cache
def installed() -> dict[str, ModelSpec]:
    """All model packages of this environment, by name, sorted.

    Raises:
        ConfigError: a package cannot be imported.
    """
    found = {}
    for point in sorted(entry_points(group="lm.models"), key=lambda point: point.name):
        try:
            found[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"model {point.name}: {point.value} cannot be imported ({error}); "
                f"install the package again"
            ) from error
    return found


def find(name: str) -> ModelSpec:
    """The package that owns a name: its own, a preset's, a model type's, a run's or a class's.

    Raises:
        ConfigError: nothing installed knows the name.
    """
    specs = installed().values()
    for spec in specs:
        if name == spec.name or name in spec.presets or name in spec.hf_types:
            return spec
    for spec in specs:
        if name in (*spec.run_names(), *spec.class_names()):
            return spec
    known = [word for spec in specs for word in (spec.name, *spec.presets)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {near[0]}?" if near else "use one of their presets (`lm models` lists them)"
    )
    raise ConfigError(
        f"model: no installed package knows {name!r}; "
        f"installed: {', '.join(installed()) or 'none'}; "
        f"{hint} or pip install the package"
    )


def read_run(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> RunConfig:
    """Reads a run; which model it is for is found in it (`lm_core.LmConfig`).

    Args:
        source: a YAML file, the name of a packaged run ("gpt2"), or a mapping with the same keys.
        overrides: "key.sub=value" texts, or a mapping of dotted keys.

    Raises:
        ConfigError: every problem found, one line each.
    """
    from lm_core.config.load import resolve

    layers = _layers(source, overrides)
    return resolve(layers, _of_layers(layers))


def of_run(source: str | Path | Mapping[str, Any]) -> ModelSpec:
    """The package whose model a run is for.

    Raises:
        ConfigError: there is no such run, or it does not say.
    """
    named = not isinstance(source, Mapping) and knows(str(source))
    return find(str(source)) if named else _of_layers(_layers(source))


def _layers(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Layers:
    from lm_core.config.load import read_layers

    return read_layers(source, overrides, [spec.configs for spec in installed().values()])


def _of_layers(layers: Layers) -> ModelSpec:
    from lm_core.config.load import family_names

    candidates = family_names(layers)
    if not candidates:
        raise ConfigError(
            f"{layers.label}: model: the run does not say which model it is for; "
            f"set trainer.model_name or model.model_config.preset"
        )
    known = [name for name in candidates if knows(name)]
    return find(known[0] if known else candidates[0])


def knows(name: str) -> bool:
    """Whether an installed package owns the name."""
    try:
        find(name)
    except ConfigError:
        return False
    return True
