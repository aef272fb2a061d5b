"""The same random model for everybody: our directory, the peers', and a GGUF file beside it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

Shape = tuple[int, ...]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model(ABC):
    """A model with its sizes, as its publisher names and stores the weights.

    Attributes:
        title: what tables call it.
        layers: blocks.
        hidden: H.
        heads: N; as many of keys and values, where the class does not say otherwise.
        inner: F.
        vocabulary: V.
        positions: the longest sequence.
    """

    title: str
    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    positions: int

    looked_up: ClassVar[tuple[str, ...]]
    """The tables of which a decoding step reads no more than a row."""
    same_tokens: ClassVar[bool] = True
    """Whether peers must give our tokens."""
    same_losses: ClassVar[int] = 2
    """How many losses of the first training steps they must have in common with us."""
    note: ClassVar[str] = ""
    """What peers have in its place, as the titles of its rows say."""

    @property
    def weight_bytes(self) -> int:
        """What a decoding step reads."""
        return 4 * sum(prod(s) for name, s in self.shapes().items() if name not in self.looked_up)

    @abstractmethod
    def shapes(self) -> dict[str, Shape]:
        """All tensors of model.safetensors."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""

    @abstractmethod
    def peer(self) -> Known:
        """The model that peers are given."""

    @abstractmethod
    def for_peer(self, tensors: Tensors) -> Tensors:
        """Its tensors, by its names."""

    @classmethod
    def sized_as(cls, other: Model) -> Self:
        """A model of this kind with the sizes of another."""
        return cls(**asdict(other))

    def draw(self, seed: int = 0) -> Tensors:
        """Random tensors by their names."""
        rng = np.random.default_rng(seed)
        return {name: _draw(rng, name, shape) for name, shape in self.shapes().items()}

    def write(self, folder: Path, tensors: Tensors) -> None:
        """Writes config.json and model.safetensors."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


class Known(Model):
    """A model that Hugging Face and llama.cpp have too: its own peer."""

    architecture: ClassVar[str]
    """How GGUF calls it."""
    gguf_names: ClassVar[dict[str, str]]
    """Their name of a tensor, without block and kind -> that of GGUF."""

    def peer(self) -> Known:
        return self

    def for_peer(self, tensors: Tensors) -> Tensors:
        return tensors

    @abstractmethod
    def settings(self, writer: Any) -> None:
        """Hands what only this architecture has to a GGUFWriter."""

    @abstractmethod
    def for_gguf(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        """Name and contents of a tensor in a GGUF file."""

    def make_gguf(self, folder: Path, tensors: Tensors) -> None:
        """Writes model.gguf, the same numbers for llama.cpp."""
        import gguf

        writer = gguf.GGUFWriter(folder / "model.gguf", self.architecture)
        writer.add_context_length(self.positions)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.inner)
        writer.add_block_count(self.layers)
        writer.add_head_count(self.heads)
        writer.add_vocab_size(self.vocabulary)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_tokenizer_model("no_vocab")
        self.settings(writer)
        for name, array in tensors.items():
            theirs, values = self.for_gguf(name, array)
            writer.add_tensor(theirs, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _draw(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    """Norms are around 1, all else around 0."""
    is_norm = len(shape) == 1 and name.endswith("weight")
    drawn = 0.05 * rng.standard_normal(shape, dtype=np.float32)
    return 1 + drawn if is_norm else drawn
