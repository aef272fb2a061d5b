"""Sentencepiece models (Kudo and Richardson 2018), as Llama, ChatGLM2 and Baichuan2 use them.

The sentencepiece library cuts text. What it does not do is here: special tokens are never found in
text unless that is asked for (neither "<s>" nor a piece such as "<PRE>" that a vocabulary has among
its ordinary ones), text may stand within another (no implied space before it), tokens may be added
behind the vocabulary, and ids are decoded to bytes, so that a character of several tokens can come
piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import NAMES, Tokenizer
from lm_core.tokenizer.files import read_config
from lm_core.tokenizer.sentencepiece_model import with_controls, without_prefix
from lm_core.tokenizer.values import plain, without_surrogates

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How pieces spell a space."""
_SWITCHES = ("add_bos_token", "add_eos_token", "split_special_tokens", "legacy")


class SentencePieceTokenizer(Tokenizer):
    """Ids of a sentencepiece model.

    Attributes:
        model: contents of the model's file.
        legacy: where special tokens are parsed, each text between two of them is a text of its own,
            with an implied space before it; otherwise only the first is.
    """

    file_name = "tokenizer.model"
    tokenizer_class = ""
    """What tokenizer_config.json calls this kind."""
    _beyond = b""
    _space = " "
    """What `SPACE` in a piece shows as."""

    def __init__(
        self,
        model: bytes,
        *,
        special: Mapping[str, int] | None = None,
        legacy: bool = True,
        split_special_tokens: bool = True,
        **named: Any,
    ) -> None:
        """Builds the tables.

        Args:
            model: contents of the model's file.
            special: ids of further special tokens, in the vocabulary or behind it. The control
                pieces of the model and the named tokens are special anyhow.
            legacy: see above.
            split_special_tokens: "<s>" in a text is ordinary text.
            **named: what `Tokenizer` takes; None: the model's own token, if it has one.

        Raises:
            TokenizerError: no sentencepiece model; a named token without id.
        """
        self.model, self.legacy = bytes(model), legacy
        library = _processor(self.model)
        self._pieces: list[str] = library.id_to_piece(list(range(library.get_piece_size())))
        for name in NAMES:
            index = getattr(library, f"{name.removesuffix('_token')}_id")()
            if named.get(name) is None and index >= 0:
                named[name] = self._pieces[index]
        found = self._all_special(library, named, special or {})
        super().__init__(found, split_special_tokens=split_special_tokens, **named)
        self._size = max([len(self._pieces) - 1, *found.values()]) + 1

    def _all_special(
        self, library: Any, named: Mapping[str, Any], given: Mapping[str, int]
    ) -> dict[str, int]:
        """The model's own special tokens, the named ones that it has, and those given.

        What is given for the id of another stands in its place.
        """
        found = self._own_special(library)
        for token in (named[name] for name in NAMES if named.get(name) is not None):
            if (index := self._index(library, token)) is not None:
                found[token] = index
        replaced = set(given.values())
        kept = {token: index for token, index in found.items() if index not in replaced}
        return kept | dict(given)

    def _own_special(self, library: Any) -> dict[str, int]:
        """Pieces that are special whatever the files of the folder say: the control symbols."""
        every = list(range(len(self._pieces)))
        kinds = zip(library.is_control(every), library.is_unknown(every), strict=True)
        return {self._pieces[index]: index for index, kind in enumerate(kinds) if any(kind)}

    def _index(self, library: Any, token: str) -> int | None:
        """Id of a piece; of what is none the library says the id of the unknown one."""
        index = library.piece_to_id(token)
        return index if self._pieces[index] == token else None

    @classmethod
    def from_pretrained(cls, directory: str | Path, **settings: Any) -> Self:
        """Reads the model of a folder, and the tokens and switches that its JSON files name.

        Args:
            directory: a folder with tokenizer.model, or with another single `*.model`; or the file.
            **settings: what overrides tokenizer_config.json: bos_token, eos_token, pad_token,
                unk_token, add_bos_token, add_eos_token, split_special_tokens, legacy.

        Raises:
            TokenizerError: files are missing, damaged, or do not fit each other.
        """
        path = model_file(Path(directory), cls.file_name)
        config = read_config(path.parent)
        known = (*NAMES, *_SWITCHES)
        found = {name: config[name] for name in known if config.get(name) is not None}
        try:
            return cls(_read(path), special=config["added_tokens"], **{**found, **settings})
        except TokenizerError as error:
            raise TokenizerError(*(f"{path}: {problem}" for problem in error.problems)) from error

    # Text to ids.

    @cached_property
    def _first(self) -> Any:
        """Cuts text; an implied space stands before it where the model says so."""
        library = _processor(self.model)
        inside = (index for index in self._special_text if index < len(self._pieces))
        # Of the unknown piece there must be one, and bytes are needed.
        ordinary = [
            index
            for index in inside
            if not (
                library.is_control(index) or library.is_unknown(index) or library.is_byte(index)
            )
        ]
        return _processor(with_controls(self.model, ordinary)) if ordinary else library

    @property
    def encoding_model(self) -> bytes:
        """The model by which texts are cut: pieces that are special here are never found there."""
        return self._first.serialized_model_proto()

    def _without(self, ids: Collection[int]) -> Any:
        """Cuts text in which these pieces are never found, beside the special tokens."""
        return _processor(with_controls(self.encoding_model, ids))

    @cached_property
    def _within(self) -> Any:
        """Cuts text that stands within another."""
        return _processor(without_prefix(self.encoding_model))

    @cached_property
    def _implied(self) -> bool:
        """Whether a space is implied before a text."""
        return self._first.encode("a", out_type=str)[0].startswith(SPACE)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what the library holds is made again there."""
        kind = type(self)
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(kind, name, None), cached_property)
        }

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""
        return self._size

    def _encode(self, text: str) -> Iterable[int]:
        return self._first.encode(text)

    def encode_within(self, text: str) -> list[int]:
        """Ids of text that stands within another: no space is implied before it.

        Special tokens in it are ordinary text.
        """
        return self._within.encode(without_surrogates(text))

    def _encode_after_special(self, text: str) -> Iterable[int]:
        return self._first.encode(text) if self.legacy else self._within.encode(text)

    # Ids to text.

    @cached_property
    def _spelt(self) -> list[bytes]:
        """The bytes that each piece means."""
        is_byte = self._first.is_byte(list(range(len(self._pieces))))
        return [
            bytes([int(piece[3:5], 16)]) if byte else piece.replace(SPACE, self._space).encode()
            for piece, byte in zip(self._pieces, is_byte, strict=True)
        ]

    def _bytes(self, ids: Sequence[int], after: int | None) -> bytes:
        found = b"".join(map(self._spelt.__getitem__, ids))
        return found[1:] if found[:1] == b" " and self._begins(after) else found

    def decode_within(self, ids: Any) -> str:
        """Text of ids that stand within a text: its first space is its own. No special tokens."""
        rows = [index for index in plain(ids) if self._kind(index) == "ordinary"]
        return b"".join(map(self._spelt.__getitem__, rows)).decode("utf-8", "replace")

    def _begins(self, after: int | None) -> bool:
        """Whether a space is implied before what stands behind this special token."""
        if after is not None and self._kind(after) != "special":
            return False
        return self._implied and (self.legacy or after in (None, self.bos_token_id))

    # Tokens and files.

    def _id(self, token: str) -> int | None:
        return self._index(self._first, token)

    def _token(self, index: int) -> str | None:
        return self._pieces[index] if 0 <= index < len(self._pieces) else None

    def _files(self) -> dict[str, str | bytes]:
        return {self.file_name: self.model}

    def settings(self) -> dict[str, Any]:
        added = {
            str(index): {"content": token, "special": True}
            for token, index in sorted(self.special.items(), key=lambda item: item[1])
        }
        own = {"tokenizer_class": self.tokenizer_class} if self.tokenizer_class else {}
        return {**super().settings(), **own, "legacy": self.legacy, "added_tokens_decoder": added}


def model_file(place: Path, name: str) -> Path:
    """The sentencepiece model that a folder holds: `name`, or the only `*.model`.

    Raises:
        TokenizerError: there is none, or several.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise TokenizerError(f"{place}: is no folder; name one that holds {name}")
    if (place / name).exists():
        return place / name
    others = sorted(place.glob("*.model"))
    if len(others) == 1:
        return others[0]
    if others:
        shown = ", ".join(path.name for path in others)
        raise TokenizerError(f"{place}: holds {shown}; must be one; rename the right one {name}")
    instead = " (tokenizer.json alone does not do)" if (place / "tokenizer.json").exists() else ""
    raise TokenizerError(
        f"{place}: {name} missing{instead}; must be the sentencepiece model of this tokenizer; put "
        f"it there"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror}); name a file that can") from error


def _processor(model: bytes) -> Any:
    """The library's object; making it takes 20 ms for 32000 pieces.

    Raises:
        TokenizerError: the bytes are no model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        made = SentencePieceProcessor(model_proto=model)
        if made.get_piece_size():
            return made
    except (RuntimeError, OSError, ValueError):
        pass
    raise TokenizerError(
        "is no sentencepiece model; the file is damaged, incomplete or of another kind; copy it "
        "again"
    ) from None
